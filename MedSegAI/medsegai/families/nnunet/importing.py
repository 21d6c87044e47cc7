"""Conversion of nnU-Net v2 models to model folders with safetensors weights, which cannot run code.

The input can be a results folder, one of its folds, the folder of a dataset, or the archive that
`nnUNetv2_export_model_to_zip` writes.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path, PurePosixPath

from medsegai.errors import ModelError
from medsegai.families._imported_weights import save_imported_weights
from medsegai.families.nnunet.model import FoldNetwork
from medsegai.io import write_card
from medsegai.io.archives import Kind, unpacked
from medsegai.models.card import MemberCard, ModelCard, load_card
from medsegai.models.nnunet_plans import card_of_folder, is_nnunet_folder

_ABOVE = r"(?:[^/]+/){0,3}"
_RESULTS_OF_CASES = (
    r"(?:validation\w*|crossval_results_folds_\w+|ensembles/[^/]+|predicted_next_stage/[^/]+)"
)

WANTED = re.compile(
    rf"{_ABOVE}(?:dataset|plans|inference_information)\.json"
    rf"|{_ABOVE}(?:(?:crossval_results_folds_\w+|ensembles/[^/]+)/)?postprocessing\.(?:json|pkl)"
    rf"|{_ABOVE}fold_(?:\d+|all)/checkpoint_(?:final|best)\.pth"
)
"""Files of an archive that a card is made from. The .pkl is not opened; its presence is reported."""

KNOWN = re.compile(
    rf"{_ABOVE}(?:dataset_fingerprint|splits_final)\.json|{_ABOVE}inference_\w+\.txt"
    rf"|{_ABOVE}fold_(?:\d+|all)/(?:checkpoint_latest\.pth|debug\.json|progress\.png"
    r"|network_architecture\.pdf|training_log_\w+\.txt)"
    rf"|{_ABOVE}(?:[^/]+/)?{_RESULTS_OF_CASES}/(?:[^/]+/)?[^/]+\.(?:nii|gz|nrrd|mha|tiff?|png|npz|npy|pkl|json)"
    r"|(?:[^/]+/)*(?:README|LICEN[CS]E|CITATION)(?:\.(?:md|txt|cff))?"
    r"|__MACOSX/.*|(?:[^/]+/)*(?:\.DS_Store|Thumbs\.db|desktop\.ini)"
)
"""What else nnU-Net's export, or an archive that users made of a folder, holds. It stays in the archive."""


def import_model(path: Path, destination: Path) -> ModelCard | None:
    """Turn what nnU-Net v2 trained into a model folder with safetensors weights.

    Args:
        path: a results folder, a fold, or the folder of a dataset; or a zip archive of one of these.
        destination: the folder to write; it must not exist. An archive is unpacked beside it meanwhile.

    Returns:
        The card, or None if `path` is none of these.

    Raises:
        UnsafeModelError: a checkpoint wants more than weights, or an archive could do harm.
        ModelError: the folder is incomplete or contradicts itself, or weights do not fit their plans.
    """
    if is_nnunet_folder(path):
        return convert(card_of_folder(path), destination)
    if path.is_file() and path.suffix.lower() == ".zip":
        return _import_archive(path, destination)
    if path.is_file() and is_nnunet_folder(path.parent):
        raise ModelError(f"{path} is one file of an nnU-Net. Name its folder: {path.parent}")
    return None


def _import_archive(archive: Path, destination: Path) -> ModelCard:
    with unpacked(archive, _kind_of, destination.parent) as folder:
        try:
            return convert(card_of_folder(_model_in(folder)), destination)
        except ModelError as error:  # users know the archive, not where it was unpacked
            raise type(error)(str(error).replace(str(folder), str(archive))) from error


def _kind_of(path: PurePosixPath) -> Kind:
    if WANTED.fullmatch(str(path)):
        return Kind.WANTED
    return Kind.KNOWN if KNOWN.fullmatch(str(path)) else Kind.FOREIGN


def _model_in(folder: Path) -> Path:
    """Find the folder that nnU-Net wrote, which may be inside of other folders."""
    place = folder
    while not is_nnunet_folder(place):
        inside = [path for path in place.iterdir() if path.is_dir() and path.name != "__MACOSX"]
        if len(inside) != 1:
            raise ModelError(
                f"{folder} holds {'several datasets' if inside else 'no results'} of nnU-Net. Make an archive of "
                "one, as nnUNetv2_export_model_to_zip does."
            )
        place = inside[0]
    return place


def convert(card: ModelCard, destination: Path) -> ModelCard:
    """Write the model of a card to a new folder, with safetensors in place of nnU-Net's checkpoints.

    Raises:
        UnsafeModelError: a checkpoint wants more than weights.
        ModelError: weights are missing, or do not fit their plans.
    """
    destination.mkdir(parents=True)
    members = tuple(_convert_member(card, member, destination) for member in card.members)
    converted = dataclasses.replace(card, members=members, folder=destination, in_place=False)
    write_card(converted, destination)
    return load_card(destination)


def _convert_member(card: ModelCard, member: MemberCard, destination: Path) -> MemberCard:
    """Read the checkpoint into its network, so that it surely fits, and write what the network holds."""
    fold = FoldNetwork(card, member)
    weights = destination / f"{member.name.replace('/', '-')}.safetensors"
    axes = list(fold.mirror_axes)
    sha256 = save_imported_weights(fold.load().state_dict(), weights, card.weights_path(member))
    return dataclasses.replace(
        member,
        weights=weights.name,
        sha256=sha256,
        settings={**member.settings, "mirror_axes": axes},
    )
