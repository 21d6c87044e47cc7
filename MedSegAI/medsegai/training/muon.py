"""Muon: momentum whose matrices are made orthogonal before they are applied.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, with the scale of J. Liu
et al., "Muon is Scalable for LLM Training", 2025. `torch.optim.Muon` takes matrices only; here a convolution
counts as the matrix (outputs, inputs times kernel).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""The coefficients of the quintic Newton-Schulz iteration, chosen by its authors for a steep slope at zero."""

UPDATE_SCALE = 0.2
"""The factor that gives an update the root mean square of AdamW's updates."""


class Muon(torch.optim.AdamW):
    """Muon for parameter groups with `orthogonal=True`, with `momentum` and `half`; AdamW for the others."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient; the gradients of orthogonal groups are dropped."""
        for group in self.param_groups:
            if not group.get("orthogonal", False):
                continue
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
                    weight.grad = None  # AdamW below skips weights without a gradient
        super().step(closure)  # type: ignore[arg-type]

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
            state["step"] = torch.tensor(0.0)  # AdamW expects it in every state that it loads
        momentum: Tensor = state["momentum"]
        momentum.lerp_(weight.grad, 1.0 - group["momentum"])  # type: ignore[arg-type]
        update = weight.grad.lerp(momentum, group["momentum"])  # type: ignore[union-attr]
        matrix = orthogonalised(update.reshape(len(weight), -1), group["half"])
        scale = UPDATE_SCALE * max(matrix.shape) ** 0.5
        weight.mul_(1.0 - group["lr"] * group["weight_decay"])
        weight.add_(matrix.reshape(weight.shape), alpha=-group["lr"] * scale)


def orthogonalised(matrix: Tensor, half: bool = False) -> Tensor:
    """Return the nearest matrix whose singular values are about one, (rows, columns), float32.

    With `half` the iteration runs in bfloat16, which is as good: it need not converge.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / (x.norm() + 1e-7)
    if half:
        x = x.bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).float()
