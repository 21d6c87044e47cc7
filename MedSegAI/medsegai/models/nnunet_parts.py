"""The parts of nnU-Net v2 that its plans name: which MedSegAI reproduces, and which it refuses, with the reason.

An unknown name is refused as well, because the code behind it could do anything. The lists are those of nnunetv2
2.8.1 and of dynamic_network_architectures 0.4; `test_nnunet_parts` compares them with what is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medsegai.errors import ModelError
from medsegai.models.json_fields import from_json, number, shown

NAMED_AT_MOST = 8
"""Known names that a message lists."""

THEIR_PROGRAM = "Predict with nnunetv2 itself."


@dataclass(frozen=True)
class Parts:
    """The parts of one kind.

    Attributes:
        kind: in words.
        reproduced: names of those that give here what they give in nnunetv2.
        refused: names of the others that nnunetv2 has, each with the reason.
        way_out: what to do about a part that nnunetv2 does not have.
    """

    kind: str
    reproduced: frozenset[str]
    refused: Mapping[str, str] = field(default_factory=dict)
    way_out: str = "Predict with the program of its authors."

    def check(self, name: str, where: str) -> None:
        """Refuse what is not reproduced.

        Raises:
            ModelError: with the name, the reason and the way out.
        """
        if name in self.refused:
            raise ModelError(
                f"{where}: the {self.kind} {name} is not one that MedSegAI can stand in for, because "
                f"{self.refused[name]}. {THEIR_PROGRAM}"
            )
        if name not in self.reproduced:
            raise ModelError(
                f"{where}: the {self.kind} {shown(name)} is unknown, an extension of nnU-Net that MedSegAI does "
                f"not have{self._known()}. {self.way_out}"
            )

    def _known(self) -> str:
        few = len(self.reproduced) <= NAMED_AT_MOST
        return f"; known are {', '.join(sorted(self.reproduced))}" if few else ""


ITK_REORIENTS = "SimpleITKIOWithReorient"
NIBABEL_REORIENTS = "NibabelIOWithReorient"
"""Readers that first reorient every image to RAS; they differ in how they treat oblique axes."""

PICTURES = "NaturalImage2DIO"
"""Reader of photographs (PNG, BMP, TIFF), grey or in colours."""

PICTURE_SPACING = (999.0, 1.0, 1.0)
"""The spacing (k, j, i) that this reader gives every photograph, whatever the size of its pixels."""

READERS = Parts(
    "image reader",
    frozenset({"SimpleITKIO", "NibabelIO", ITK_REORIENTS, NIBABEL_REORIENTS, PICTURES}),
    {
        "Tiff3DIO": "it reads stacks of TIFF, whose spacing and axes are not in the file",
        "BaseReaderWriter": "it is only what readers of nnU-Net are derived from",
    },
)

SPLINE = "resample_data_or_seg_to_shape"
TORCH = "resample_torch_fornnunet"
UNCHANGED = ("no_resampling_hack", "no_resampling_data_or_seg_to_shape")

_OTHER_ARGUMENTS = "it takes other arguments than those that nnU-Net's preprocessing gives it"

RESAMPLERS = Parts(
    "resampling function",
    frozenset({SPLINE, TORCH, *UNCHANGED}),
    {
        "resample_data_or_seg": _OTHER_ARGUMENTS,
        "resample_data_or_seg_to_spacing": _OTHER_ARGUMENTS,
        "resample_torch_simple": _OTHER_ARGUMENTS,
    },
)

_THICK_PLANES = frozenset({"force_separate_z", "separate_z_anisotropy_threshold"})

RESAMPLING_OPTIONS = {
    SPLINE: _THICK_PLANES | {"order", "order_z"},
    TORCH: _THICK_PLANES | {"memefficient_seg_resampling", "num_threads", "device"},
    **dict.fromkeys(UNCHANGED, frozenset[str]()),
}
"""Arguments that are followed, or that do not change what comes out."""

NORMALISERS = Parts(
    "normalisation of intensities",
    frozenset(
        {
            "CTNormalization",
            "ZScoreNormalization",
            "NoNormalization",
            "RescaleTo01Normalization",
            "RGBTo01Normalization",
        }
    ),
    {"ImageNormalization": "it is only what normalisations of nnU-Net are derived from"},
)

_PART = "it is a part of other networks"
_CLASSIFIER = "it classifies whole images instead of voxels"
_TRANSFORMER = "it is a transformer, whose layers MedSegAI does not have"

NETWORK_PACKAGE = "dynamic_network_architectures"

NETWORKS = Parts(
    "network",
    frozenset({"PlainConvUNet", "ResidualUNet", "ResidualEncoderUNet"}),
    {
        name: reason
        for reason, names in (
            (
                _PART,
                "AbstractDynamicNetworkArchitectures InitWeights_He PatchEmbed EvaAttention EvaBlock BlockChunk",
            ),
            (
                _TRANSFORMER,
                "Eva EvaWithChunking Dinov2PrimusEncL Primus PrimusX PrimusV2 PrimusV3 PrimusV2X PrimusV3X "
                "PrimusS PrimusB PrimusM PrimusL PrimusV2S PrimusV2B PrimusV2M PrimusV2L PrimusV3S "
                "PrimusV3B PrimusV3M PrimusV3L",
            ),
            (
                _CLASSIFIER,
                "ResNetD ResNet18_CIFAR ResNet34_CIFAR ResNet50_CIFAR ResNet152_CIFAR ResNet50bn_CIFAR "
                "ResNet152bn_CIFAR ResNet18 ResNet34 ResNet50 ResNet152 ResNet50bn ResNet152bn VGG VGG16 VGG19 "
                "VGG16_cifar VGG19_cifar",
            ),
        )
        for name in names.split()
    },
)
"""By the last part of the name, because nnunetv2 looks for networks that have moved within their package."""


def check_network(name: str, where: str) -> None:
    """Refuse a network that is not reproduced, and one of that name in another package than nnU-Net's.

    Raises:
        ModelError: with the name.
    """
    module, _, own = name.rpartition(".")
    known = not module or module.partition(".")[0] == NETWORK_PACKAGE
    NETWORKS.check(own if known else name, where)


_PRIMUS = "it trains a transformer (Primus), whose layers MedSegAI does not have"

TRAINERS = Parts(
    "trainer",
    frozenset(
        [
            "nnUNetTrainer",
            "nnUNetTrainerBN",
            "nnUNetTrainerNoDeepSupervision",
            "nnUNet_Trainer_BS8",
            "nnUNetTrainerBenchmark_5epochs",
            "nnUNetTrainerBenchmark_5epochs_noDataLoading",
            "nnUNetTrainerDA5",
            "nnUNetTrainerDA5ord0",
            "nnUNetTrainerDA5Segord0",
            "nnUNetTrainerDA5_10epochs",
            "nnUNetTrainer_DASegOrd0",
            "nnUNetTrainer_DASegOrd0_NoMirroring",
            "nnUNetTrainerNoDA",
            "nnUNetTrainer_noDummy2DDA",
            "nnUNetTrainerNoMirroring",
            "nnUNetTrainer_onlyMirror01",
            "nnUNetTrainer_onlyMirror01_1500ep",
            "nnUNetTrainer_onlyMirror01_DASegOrd0",
            "nnUNetTrainer_onlyMirror01_DA5",
            "nnUNetTrainerCELoss",
            "nnUNetTrainerCELoss_5epochs",
            "nnUNetTrainerDiceLoss",
            "nnUNetTrainerDiceCELoss_noSmooth",
            "nnUNetTrainerTopk10Loss",
            "nnUNetTrainerTopk10LossLS01",
            "nnUNetTrainerDiceTopK10Loss",
            "nnUNetTrainerCosAnneal",
            "nnUNetTrainer_warmup",
            "nnUNetTrainerAdam",
            "nnUNetTrainerVanillaAdam",
            "nnUNetTrainerVanillaAdam1en3",
            "nnUNetTrainerVanillaAdam3en4",
            "nnUNetTrainerAdam1en3",
            "nnUNetTrainerAdam3en4",
            "nnUNetTrainerAdan",
            "nnUNetTrainerAdan1en3",
            "nnUNetTrainerAdan3en4",
            "nnUNetTrainerAdan1en1",
            "nnUNetTrainerAdanCosAnneal",
            "nnUNetTrainer_probabilisticOversampling",
            "nnUNetTrainer_probabilisticOversampling_033",
            "nnUNetTrainer_probabilisticOversampling_010",
            "nnUNetTrainer_1epoch",
            "nnUNetTrainer_5epochs",
            "nnUNetTrainer_10epochs",
            "nnUNetTrainer_20epochs",
            "nnUNetTrainer_50epochs",
            "nnUNetTrainer_100epochs",
            "nnUNetTrainer_250epochs",
            "nnUNetTrainer_500epochs",
            "nnUNetTrainer_750epochs",
            "nnUNetTrainer_2000epochs",
            "nnUNetTrainer_4000epochs",
            "nnUNetTrainer_8000epochs",
            "nnUNetTrainer_250epochs_NoMirroring",
            "nnUNetTrainer_2000epochs_NoMirroring",
            "nnUNetTrainer_4000epochs_NoMirroring",
            "nnUNetTrainer_8000epochs_NoMirroring",
        ]
    ),
    dict.fromkeys(
        [
            "AbstractPrimus",
            "nnUNet_Primus_S_Trainer",
            "nnUNet_Primus_B_Trainer",
            "nnUNet_Primus_M_Trainer",
            "nnUNet_Primus_M_Trainer_BS8",
            "nnUNet_Primus_M_Trainer_BS8_2e4",
            "nnUNet_Primus_L_Trainer",
            "nnUNet_PrimusV2S_Trainer",
            "nnUNet_PrimusV2B_Trainer",
            "nnUNet_PrimusV2M_Trainer",
            "nnUNet_PrimusV2L_Trainer",
            "nnUNet_PrimusV3S_Trainer",
            "nnUNet_PrimusV3B_Trainer",
            "nnUNet_PrimusV3M_Trainer",
            "nnUNet_PrimusV3L_Trainer",
            "_Primus_S_96_BS1",
            "_Primus_B_96_BS1",
            "_Primus_M_96_BS1",
            "_Primus_L_48_BS1",
        ],
        _PRIMUS,
    ),
    "If it changed the training alone, and the network is the one in plans.json, say so by renaming the folder to "
    "nnUNetTrainer__PLANS__CONFIGURATION.",
)
"""What a trainer decides of a prediction is the network, and, in the checkpoint, the axes to mirror."""

PREPROCESSORS = Parts("preprocessor", frozenset({"DefaultPreprocessor"}))
LABEL_MANAGERS = Parts("label manager", frozenset({"LabelManager"}))

CT_FIGURES = ("percentile_00_5", "percentile_99_5", "mean", "std")
"""What CTNormalization needs to know of the foreground of the training images, per channel."""

LARGEST_PATCH = 4096
"""Voxels of a patch along an axis."""


@dataclass(frozen=True)
class ConfigurationSettings:
    """What a card says about a configuration, with the keys of plans.json."""

    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    normalization: tuple[str, ...]
    use_mask: tuple[bool, ...]
    network: Mapping[str, Any]
    resampling: Mapping[str, Any]
    previous_stage: str | None = None


@dataclass(frozen=True)
class CardSettings:
    """What a card of this family says in `settings`."""

    reader: str
    transpose: tuple[int, int, int]
    intensities: Mapping[str, Any]
    configurations: Mapping[str, Any]
    regions: tuple[tuple[int, ...], ...] | None = None
    regions_class_order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class MemberSettings:
    """What a card of this family says in the `settings` of a member."""

    configuration: str
    fold: str
    mirror_axes: tuple[int, ...] | None = None


def check_settings(settings: Mapping[str, Any], channels: int, where: str) -> None:
    """Refuse settings of a card that contradict themselves, or name parts that are not reproduced.

    Args:
        settings: of the card.
        channels: how many images the model takes.
        where: file or model, for messages.

    Raises:
        ModelError: what is wrong, and where.
    """
    try:
        card = from_json(CardSettings, settings)
        _check_card(card, channels)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
    _check_parts(card, where)


def _check_card(card: CardSettings, channels: int) -> None:
    if sorted(card.transpose) != [0, 1, 2]:
        raise ModelError(f"transpose must order 0, 1 and 2, not {list(card.transpose)}.")
    for channel, figures in card.intensities.items():
        if not isinstance(figures, Mapping):
            raise ModelError(f"intensities of channel {channel} must be an object.")
    if not card.configurations:
        raise ModelError("there are no configurations.")
    for name, configuration in card.configurations.items():
        _check_configuration(name, configuration, card, channels)


def _check_parts(card: CardSettings, where: str) -> None:
    """Refuse what MedSegAI does not reproduce."""
    READERS.check(card.reader, where)
    for configuration in card.configurations.values():
        for scheme in configuration["normalization"]:
            NORMALISERS.check(scheme, where)
        for resampling in configuration["resampling"].values():
            _check_resampling(resampling, where)
        check_network(configuration["network"]["class"], where)


def _check_intensities(schemes: Sequence[str], card: CardSettings) -> None:
    for channel, scheme in enumerate(schemes):
        if scheme == "CTNormalization":
            for figure in CT_FIGURES:
                value = card.intensities.get(str(channel), {}).get(figure)
                what = f"{figure} of channel {channel}, by which CTNormalization normalises,"
                number(value, what)


def _check_configuration(name: str, configuration: Any, card: CardSettings, channels: int) -> None:
    settings = from_json(ConfigurationSettings, configuration, f"configurations.{name}")
    patch, spacing = settings.patch_size, settings.spacing
    for size in patch:
        number(size, f"patch_size of {name}", 1, LARGEST_PATCH)
    for length in spacing:
        number(length, f"spacing of {name}", 1e-6, 1e6)
    if len(patch) not in (2, 3) or len(spacing) != len(patch):
        raise ModelError(f"patch_size and spacing of {name} must have 2 or 3 values each.")
    if not len(settings.normalization) == len(settings.use_mask) == channels:
        raise ModelError(f"{name} does not normalise as many channels as the model takes.")
    _check_intensities(settings.normalization, card)
    if not _is_network(settings.network):
        raise ModelError(f"network of {name} must have a class and arguments.")
    if set(settings.resampling) != {"data", "seg", "probabilities"}:
        raise ModelError(f"resampling of {name} must be of data, seg and probabilities.")
    if settings.previous_stage not in (None, *card.configurations):
        raise ModelError(f"previous_stage of {name} is not a configuration of the model.")


def _is_network(described: Mapping[str, object]) -> bool:
    named = isinstance(described.get("class"), str)
    return named and isinstance(described.get("arguments"), Mapping)


def _check_resampling(resampling: Any, where: str) -> None:
    if not isinstance(resampling, Mapping) or not isinstance(resampling.get("function"), str):
        raise ModelError(f"{where}: resampling must name a function, not {shown(resampling)}.")
    function = resampling["function"]
    RESAMPLERS.check(function, where)
    for option, value in resampling.items():
        if option == "function":
            continue
        if option not in RESAMPLING_OPTIONS[function]:
            raise ModelError(
                f"{where}: {function} is given {shown(option)}, which MedSegAI does not follow. {THEIR_PROGRAM}"
            )
        if option in _NUMBERS:
            number(value, option)
        elif option != "device" and not isinstance(value, (bool, type(None))):
            raise ModelError(f"{where}: {option} must be true, false or null, not {shown(value)}.")


_NUMBERS = {"order", "order_z", "separate_z_anisotropy_threshold", "num_threads"}


def check_member(
    settings: Mapping[str, Any], configurations: Mapping[str, Any], where: str
) -> None:
    """Refuse settings of a member that do not fit the configurations of its card.

    Raises:
        ModelError: what is wrong, and where.
    """
    try:
        member = from_json(MemberSettings, settings)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
    name = member.configuration
    if name not in configurations:
        raise ModelError(f"{where}: there is no configuration {shown(name)}.")
    axes = member.mirror_axes or ()
    _check_axes(axes, len(configurations[name]["patch_size"]), where)


def _check_axes(axes: Sequence[int], count: int, where: str) -> None:
    if len(set(axes)) < len(axes) or not set(axes) <= set(range(count)):
        raise ModelError(
            f"{where}: mirror_axes must be axes of the patch, each once, not {shown(axes)}."
        )
