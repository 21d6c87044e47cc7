"""The last layer of a network, where it takes each voxel by itself: it is applied after windows are blended.

A convolution with a kernel of one voxel is linear, and the weights of a mean sum to one, so the mean of its
answers is its answer to the mean of its input. Applied later, it is applied once to each voxel. A network for 105
classes has 32 features before it, so that a third of the numbers is added up and held.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PointwiseHead:
    """A linear layer for each voxel.

    Attributes:
        weight: float32 (class, feature).
        bias: float32 (class, 1).
    """

    weight: Tensor
    bias: Tensor

    @property
    def features(self) -> int:
        """The number of channels of its input."""
        return self.weight.shape[1]

    def into(self, features: Tensor, logits: Tensor) -> Tensor:
        """Compute logits from features (feature, ...), float32, into `logits` (class, ...), and return them."""
        device = features.device
        flat = logits.view(len(logits), -1)
        torch.addmm(self.bias.to(device), self.weight.to(device), features.flatten(1), out=flat)
        return logits


def take_head(network: nn.Module, name: str) -> PointwiseHead | None:
    """Remove the last layer of a network, so that it answers with features, if there are fewer of these.

    Args:
        network: the network, which is changed.
        name: the layer, whose output is that of the network.

    Returns:
        The layer; None, with an unchanged network, if it takes more than single voxels, or saves nothing.
    """
    layer = network.get_submodule(name)
    if not isinstance(layer, nn.Conv2d | nn.Conv3d) or layer.groups != 1:
        return None
    alone = set(layer.kernel_size) == set(layer.stride) == {1} and not any(layer.padding)
    if not alone or layer.out_channels <= layer.in_channels:
        return None
    weight = layer.weight.detach().float().flatten(1)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
    place, _, last = name.rpartition(".")
    setattr(network.get_submodule(place), last, nn.Identity())
    return PointwiseHead(weight.contiguous(), bias[:, None].contiguous())
