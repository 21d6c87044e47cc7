"""Our 2D networks answer as those of segmentation_models_pytorch and timm, with their weights.

That library comes from the package index, without what it depends on, into a folder of this test alone.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medsegai.networks.encoder_weights import read_state
from medsegai.networks.unet2d import UNet2D, UNet2DConfig

OURS = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "mobilenet_v2": "mobilenet_v2",
    "timm-regnety_002": "regnety_002",
    "timm-regnety_004": "regnety_004",
    **{f"tu-efficientnet_lite{n}": f"efficientnet_lite{n}" for n in range(3)},
    **{f"timm-tf_efficientnet_lite{n}": f"efficientnet_lite{n}_stem" for n in range(3)},
}
"""Our name of each of that library's encoders."""

NAMES = [f"{encoder} {decoder}" for encoder in OURS for decoder in ("unet", "unetplusplus")]
PACKAGES = ("segmentation_models_pytorch", "efficientnet_pytorch", "pretrainedmodels", "munch")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with their answers."""
    packages, folder = tmp_path_factory.mktemp("smp"), tmp_path_factory.mktemp("answers")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages)]
    done = subprocess.run([*install, *PACKAGES], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"segmentation_models_pytorch cannot be installed here: {done.stderr[-300:]}")
    script = Path(__file__).with_name("smp_reference.py")
    places = os.pathsep.join([str(packages), *sys.path])
    environment = {**os.environ, "PYTHONPATH": places}
    subprocess.run([sys.executable, script, folder, *NAMES], env=environment, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_networks_answer_alike(name: str, theirs: Path) -> None:
    encoder, decoder = name.split(" ")
    network = UNet2D(UNet2DConfig(OURS[encoder], decoder, 3, 2)).eval()
    state = read_state(theirs / f"{name}.pth")
    unused = ("encoder.conv_head.", "encoder.bn2.")
    given = {key.replace("encoder.model.", "encoder."): v for key, v in state.items()}
    given = {key: v for key, v in given.items() if not key.startswith(unused)}
    network.load_state_dict(given)
    known = load_file(theirs / f"{name}.safetensors")
    with torch.no_grad():
        difference = (network(known["image"]) - known["logits"]).abs().max()
    assert float(difference) == 0.0
