"""Networks of segmentation_models_pytorch on random input, for `test_unet2d_parity`, in a separate environment.

Usage: python smp_reference.py FOLDER NAME... For each NAME, as "encoder decoder", FOLDER/NAME.safetensors gets the
image and the logits, FOLDER/NAME.pth the weights, and FOLDER/NAME/ what the library's `save_pretrained` writes.
"""

import sys
from pathlib import Path

import torch

# torchvision of PyPI beside a torch without CUDA lacks its compiled operations, of which none is needed here.
register_fake = torch.library.register_fake


def registered(name, *arguments, **options):
    if name.startswith("torchvision::"):
        return lambda function: function
    return register_fake(name, *arguments, **options)


torch.library.register_fake = registered
import segmentation_models_pytorch as smp  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

torch.library.register_fake = register_fake


def main(folder: Path, names: list[str]) -> None:
    for name in names:
        torch.manual_seed(0)
        encoder, decoder = name.split(" ")
        kind = {"unet": smp.Unet, "unetplusplus": smp.UnetPlusPlus}[decoder]
        network = kind(encoder, encoder_weights=None, in_channels=3, classes=2)
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 2)
        image = torch.randn(2, 3, 64, 96)
        with torch.no_grad():
            logits = network.eval()(image)
        network.save_pretrained(folder / name)
        torch.save(network.state_dict(), folder / f"{name}.pth")
        save_file({"image": image, "logits": logits}, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
