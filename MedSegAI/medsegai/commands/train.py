"""`medsegai train`: train networks from a training file, a dataset for nnU-Net, or a folder of pictures."""

from __future__ import annotations

import argparse
import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import shown_progress
from medsegai.commands.parsing import add_device, add_output, add_path, add_switch, help_alone
from medsegai.commands.segment import comma_list
from medsegai.errors import Cancelled
from medsegai.training.patches_options import PatchTraining

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers
    from medsegai.training.run import Build
    from medsegai.training.unet2d.run import RunOptions2D


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai train` to the command line."""
    parser = subparsers.add_parser("train", help="train a model")
    help_alone(parser)
    families = parser.add_subparsers(title="families", metavar="FAMILY")
    add_quicknat(families)
    add_unet3d(families)
    add_unet2d(families)
    add_nnunet(families)
    add_patches(families)


def add_quicknat(families: Subparsers) -> None:
    quicknat = families.add_parser(
        "quicknat",
        help="one network per view",
        description="Train one network per view, as CONFIG describes. Ctrl-C stops it, and --resume continues "
        "exactly where it stopped. Several GPUs: torchrun -m medsegai train quicknat CONFIG",
    )
    add_run_options(quicknat, "views", "VIEW")
    quicknat.set_defaults(run=run_quicknat)


def add_unet3d(families: Subparsers) -> None:
    unet3d = families.add_parser(
        "unet3d",
        help="3D networks on patches",
        description="Train 3D networks on patches, as CONFIG describes. Ctrl-C stops it, and --resume continues "
        "exactly where it stopped. Several GPUs: torchrun -m medsegai train unet3d CONFIG",
    )
    add_run_options(unet3d, "members", "MEMBER")
    unet3d.set_defaults(run=run_unet3d)


def add_unet2d(families: Subparsers) -> None:
    unet2d = families.add_parser(
        "unet2d",
        help="2D networks on pictures",
        description="Train a U-Net or U-Net++ on pictures with label maps, one network for each fold, as CONFIG "
        "describes. Ctrl-C stops it, and --resume continues after the last complete epoch, exactly.",
    )
    add_place_options(unet2d)
    unet2d.add_argument(
        "--data", type=Path, help="folder of pictures, instead of data.root in CONFIG"
    )
    unet2d.add_argument(
        "--folds",
        type=number_list,
        default=[],
        metavar="N",
        help="train only these folds, numbered from 0, separated by commas",
    )
    add_switch(
        unet2d,
        "--find-rate",
        "try learning rates from small to large, draw their losses and suggest one, without training",
    )
    unet2d.set_defaults(run=run_unet2d)


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every family that is trained from a training file."""
    parser.add_argument("config", metavar="CONFIG", type=Path, help="training file (TOML)")
    add_output(
        parser,
        "folder of checkpoints, weights and log (default: training)",
        default=Path("training"),
    )
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="stop after N minutes, with a checkpoint"
    )
    parser.add_argument(
        "--until", metavar="HH:MM", help="stop at this time of day, with a checkpoint"
    )
    add_device(parser)
    add_switch(parser, "--resume", "continue from the last checkpoint in the output folder")


def add_run_options(parser: argparse.ArgumentParser, members: str, metavar: str) -> None:
    """Add the options of families for volumes."""
    add_place_options(parser)
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of images and label maps, instead of data.root in CONFIG; or, with --from, "
        "the folder of corrected cases for fine-tuning",
    )
    add_path(
        parser,
        "--maps",
        "FOLDER",
        "folder of the label maps of CONFIG, if --data is that of corrected cases",
    )
    parser.add_argument(
        f"--{members}",
        dest="members",
        nargs="+",
        metavar=metavar,
        help=f"train only these {members}",
    )
    parser.add_argument(
        "--steps", type=int, help="number of steps, instead of the number in CONFIG"
    )
    parser.add_argument(
        "--from",
        dest="start",
        default="",
        metavar="MODEL",
        help="start from the weights of this model (id or folder) instead of random weights",
    )


def add_nnunet(families: Subparsers) -> None:
    nnunet = families.add_parser(
        "nnunet",
        help="configurations and folds of an nnU-Net",
        description="Plan, preprocess and train with the installed nnU-Net v2 (pip install 'medsegai[train]'). "
        "DATASET is a raw nnU-Net folder, DatasetXXX_Name with dataset.json, imagesTr and labelsTr. Ctrl-C stops "
        "it, and --resume continues after the last finished epoch.",
    )
    nnunet.add_argument("dataset", metavar="DATASET", type=Path, help="raw nnU-Net folder")
    add_output(nnunet, "folder of results, log and curves")
    _add_nnunet_trainings(nnunet)
    add_nnunet_choices(nnunet)
    nnunet.set_defaults(run=run_nnunet)


def _add_nnunet_trainings(nnunet: argparse.ArgumentParser) -> None:
    """Add the options for what is trained, and for how long."""
    nnunet.add_argument(
        "--configurations",
        type=comma_list,
        default=["2d", "3d_fullres"],
        metavar="NAME",
        help="2d, 3d_lowres, 3d_fullres, 3d_cascade_fullres; separated by commas (default: 2d,3d_fullres)",
    )
    nnunet.add_argument(
        "--folds",
        type=comma_list,
        default=["0", "1", "2", "3", "4"],
        metavar="N",
        help="folds to train, or all for one training on all cases (default: 0,1,2,3,4)",
    )
    for name, default, text in (
        ("epochs", 1000, "number of epochs of each training"),
        ("iterations", 250, "number of batches in an epoch"),
        (
            "processes",
            2,
            "number of processes that preprocess and augment; 0: the training augments between batches",
        ),
        ("seed", 1, "seed of all random numbers"),
    ):
        nnunet.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    nnunet.add_argument(
        "--batch-size",
        type=batch_size,
        default={},
        metavar="N",
        help="number of patches in a batch, for all configurations or as in 2d=32,3d_fullres=2 "
        "(default: as planned)",
    )


def number_list(text: str) -> list[int]:
    """`0, 1` as two numbers of folds."""
    names = comma_list(text)
    for name in names:
        if not (name.isascii() and name.isdigit()):
            raise argparse.ArgumentTypeError(f"{name!r} is not the number of a fold, such as 0")
    return [int(name) for name in names]


def batch_size(text: str) -> dict[str, int]:
    """Parse `2d=32,3d_fullres=2` by configuration; `2` alone gets the empty name."""
    sizes = {}
    for part in comma_list(text):
        name, _, number = part.rpartition("=")
        if not (number.isascii() and number.isdigit()):
            raise argparse.ArgumentTypeError(f"{part!r} is neither a number nor CONFIGURATION=N")
        sizes[name] = int(number)
    return sizes


def add_nnunet_choices(nnunet: argparse.ArgumentParser) -> None:
    nnunet.add_argument(
        "--planner",
        choices=("default", "ResEncM", "ResEncL", "ResEncXL"),
        default="default",
        help="plain U-Net, or a preset with residual encoder (default: default)",
    )
    add_device(nnunet)
    nnunet.add_argument(
        "--precision",
        choices=("auto", "fp32", "mixed"),
        default="auto",
        help="precision on a CPU; auto is mixed if the processor has bfloat16 (GPUs always train "
        "in mixed precision)",
    )
    add_path(
        nnunet,
        "--groups",
        "CSV",
        "table with the columns case and patient; the cases of a patient stay in one fold",
    )
    nnunet.add_argument(
        "--no-validation",
        dest="validate",
        action="store_false",
        help="do not predict the validation cases of each fold",
    )
    add_switch(nnunet, "--resume", "resume the training in the output folder")


def run_nnunet(arguments: argparse.Namespace) -> int:
    from medsegai.training.nnunet_run import NnunetTraining, train_nnunet

    values = {item.name: getattr(arguments, item.name) for item in fields(NnunetTraining)}
    listed = {name: tuple(values[name]) for name in ("configurations", "folds")}
    training = NnunetTraining(**values | listed)
    try:
        with shown_progress() as progress:
            model = train_nnunet(training, arguments.output, arguments.resume, progress)
    except Cancelled:
        raise Cancelled(
            "Stopped by the user. Finished epochs are kept, and --resume continues after them."
        ) from None
    print(f"Trained model: {model} (medsegai segment SCAN --model {model} -o OUT)")
    return 0


def add_patches(families: Subparsers) -> None:
    patches = families.add_parser(
        "patches",
        help="classifiers of patches of slides, or of radiographs",
        description="Train a classifier of pictures. PICTURES is a folder with a subfolder for each class, "
        "perhaps below train and valid; a table of files and classes; or a folder with the files of "
        "PatchCamelyon. OUTPUT/report.html evaluates the pictures that each fold held out. Ctrl-C stops the "
        "training, and --resume continues with the interrupted epoch.",
    )
    patches.add_argument(
        "pictures", metavar="PICTURES", type=Path, help="folder or table of pictures"
    )
    add_output(
        patches,
        "folder of checkpoints, report and model (default: training)",
        default=Path("training"),
    )
    _add_patch_options(patches)
    patches.add_argument(
        "--minutes", type=float, metavar="N", help="stop after N minutes, with a checkpoint"
    )
    add_device(patches)
    add_switch(patches, "--resume", "continue with the training in the output folder")
    patches.set_defaults(run=run_patches)


def _add_patch_options(patches: argparse.ArgumentParser) -> None:
    for item in PatchTraining.options():
        name, default = f"--{item.name.replace('_', '-')}", item.default
        text = item.metadata["help"]
        if isinstance(default, bool):
            patches.add_argument(name, action="store_true", help=text)
            continue
        shown = f" (default: {default})" if default not in ("", None) else ""
        patches.add_argument(
            name,
            type=Path if default is None else type(default),
            default=default,
            choices=item.metadata["choices"] or None,
            metavar=None if item.metadata["choices"] else "VALUE",
            help=f"{text}{shown}",
        )


def run_patches(arguments: argparse.Namespace) -> int:
    from medsegai.training.patches_run import train_patches
    from medsegai.training.run import RunOptions, TimeLimit

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    values = {item.name: getattr(arguments, item.name) for item in PatchTraining.options()}
    training = PatchTraining(arguments.pictures, **values)
    limit = TimeLimit.of(arguments.minutes, None)
    options = RunOptions(arguments.output, arguments.resume, arguments.device, limit)
    with shown_progress() as progress:
        folder = train_patches(training, options, progress)
    print(f"Report, figures and model: {folder}")
    return 0


def run_quicknat(arguments: argparse.Namespace) -> int:
    from medsegai.training.quicknat import build_trainers

    return _run(build_trainers, arguments)


def run_unet3d(arguments: argparse.Namespace) -> int:
    from medsegai.training.unet3d import build_trainers

    return _run(build_trainers, arguments)


def run_unet2d(arguments: argparse.Namespace) -> int:
    from medsegai.training.unet2d.config import load_config
    from medsegai.training.unet2d.rate_finder import suggest_rate
    from medsegai.training.unet2d.run import train

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    changes = {} if arguments.data is None else {"data": {"root": str(arguments.data.resolve())}}
    config = load_config(arguments.config, changes)
    if arguments.find_rate:
        found = suggest_rate(config, arguments.output, arguments.device)
        print(f"Suggested optimiser.learning_rate: {found.rate:.2g} (curve: {found.picture})")
        return 0
    with shown_progress() as progress:
        folder = train(config, _options_2d(arguments), progress)
    print(f"Trained networks, log and scores: {arguments.output} (model: {folder})")
    return 0


def _options_2d(arguments: argparse.Namespace) -> RunOptions2D:
    from medsegai.training.run import TimeLimit
    from medsegai.training.unet2d.run import RunOptions2D

    limit = TimeLimit.of(arguments.minutes, arguments.until)
    folds = tuple(arguments.folds)
    return RunOptions2D(arguments.output, arguments.resume, arguments.device, limit, folds)


def _run(build: Build, arguments: argparse.Namespace) -> int:
    from medsegai.training.config import configured, corrected_cases
    from medsegai.training.fine_tuning import fine_tune
    from medsegai.training.run import RunOptions, TimeLimit, train

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    limit = TimeLimit.of(arguments.minutes, arguments.until)
    options = RunOptions(
        arguments.output, arguments.resume, arguments.device, limit, arguments.start
    )
    config, cases = configured(arguments), corrected_cases(arguments)
    with shown_progress() as progress:
        if cases is None:
            folder = train(build, config, options, progress)
        else:
            folder = fine_tune(build, config, cases, options, progress)
    print(f"Trained networks, log and checkpoints: {folder}")
    return 0
