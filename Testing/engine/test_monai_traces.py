"""Networks of MONAI that OpenVINO runs from the trace of a small image answer larger images as MONAI does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medsegai.networks.backends import Compute, make_runner
from medsegai.networks.monai_networks import KINDS, Description
from monai_bundles import made_network

NETWORKS: dict[str, list[dict[str, Any]]] = {
    "SegResNet": [
        {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
        {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "spatial_dims": 2},
    ],
    "SegResNetDS": [
        {"init_filters": 8, "blocks_down": [1, 1, 1], "norm": "instance", "resolution": [1, 1, 3]},
    ],
}
"""Of each kind that is traced on a small image."""

ARGUMENTS = [(name, arguments) for name, chosen in NETWORKS.items() for arguments in chosen]


def test_no_kind_is_forgotten() -> None:
    assert {name for name, kind in KINDS.items() if kind.levels} == set(NETWORKS)


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS)
def test_a_trace_of_a_small_image_is_one_for_larger_ones(
    name: str, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSEGAI_CACHE", str(tmp_path))  # where no compiled form is kept
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    chosen = {"spatial_dims": 3, "in_channels": 2, "out_channels": 3, **arguments}
    made = made_network({"_target_": name, **chosen})
    network = Description.of(name, chosen).with_weights(made.state_dict())
    assert max(network.smallest) < 16
    image = torch.randn(1, 2, *(16, 32, 24)[: chosen["spatial_dims"]])
    seen: list[torch.Size] = []
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    logits = make_runner(network, Compute(torch.device("cpu"), "openvino", False))(image)
    assert [tuple(shape[2:]) for shape in seen] == [tuple(network.smallest)]
    with torch.inference_mode():
        expected = network(image)
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-3)
