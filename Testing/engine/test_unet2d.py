"""The family of 2D networks: trained on made pictures, then used by the engine as any other."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from made_pictures import dataset, picture
from medsegai.cli import main
from medsegai.commands.segment import print_summary
from medsegai.engine import segment
from medsegai.errors import Cancelled, InputError, MismatchError, ModelError, RequestError
from medsegai.families import load_model
from medsegai.io import read_labelmap
from medsegai.labels import Label
from medsegai.models.card import ModelCard, load_card
from medsegai.models.importing import import_model
from medsegai.networks.unet2d import UNet2D, UNet2DConfig
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.training.unet2d.config import load_config
from medsegai.training.unet2d.data import inside_and_border
from medsegai.training.unet2d.fold import Fold
from medsegai.training.unet2d.run import RunOptions2D, train
from medsegai.volume import Geometry, Volume

LABEL = {"value": 1, "name": "Disc", "color": [200, 60, 60]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a training on eight pictures."""
    folder = tmp_path_factory.mktemp("discs")
    config = load_config(dataset(folder / "data"))
    train(config, RunOptions2D(folder / "run", device="cpu"), Progress())
    return folder / "run"


@pytest.fixture(scope="module")
def card(trained: Path) -> ModelCard:
    return load_card(trained / "model")


def run(card: ModelCard, *inputs: Path | Volume, **options: object) -> SegmentationResult:
    request = SegmentationRequest(inputs, models=(str(card.folder),), device="cpu", **options)
    return segment(request)


def saved(folder: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder / "picture.png"


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_a_picture_is_segmented_on_its_own_grid(card: ModelCard, tmp_path: Path) -> None:
    image, mask = picture(100, (90, 70))
    result = run(card, saved(tmp_path, image))
    assert result.labelmap.geometry.shape == (1, 90, 70)
    assert dice(result.labelmap.voxels[0] == 1, mask > 0) > 0.9
    assert any("sizes are in pixels" in warning for warning in result.warnings)


def test_folds_and_mirrored_passes_are_members(card: ModelCard, tmp_path: Path) -> None:
    image, _ = picture(101)
    path = saved(tmp_path, image)
    result = run(card, path, uncertainty=True)
    assert result.members == ("fold_0", "fold_0 mirrored i", "fold_1", "fold_1 mirrored i")
    assert result.entropy is not None
    assert result.structures[0].pairwise_dice is not None
    one = run(card, path, members=("fold_0",), mirroring=False, uncertainty=True)
    assert one.members == ("fold_0",)


def test_the_network_answers_through_the_engine_as_by_itself(
    card: ModelCard, tmp_path: Path
) -> None:
    """An independent forward pass on a picture of the network's own size."""
    image, _ = picture(102, (64, 64))
    path = saved(tmp_path, image)
    options = {"members": ("fold_1",), "mirroring": False, "precision": "fp32", "backend": "torch"}
    result = run(card, path, probabilities=True, **options)
    network = UNet2D(UNet2DConfig.of(card.settings, 1, 2)).eval()
    weights = load_file(card.weights_path(card.member("fold_1")))
    network.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    )
    with torch.no_grad():
        seen = torch.from_numpy(image / np.float32(255))[None, None]
        expected = network(seen).softmax(1)[0, 1]
    np.testing.assert_allclose(result.probabilities[0, 0], expected, atol=2e-3)


def test_openvino_and_torch_agree(card: ModelCard, tmp_path: Path) -> None:
    path = saved(tmp_path, picture(103)[0])
    by_torch = run(card, path, backend="torch", precision="fp32").labelmap.voxels
    by_openvino = run(card, path, backend="openvino", precision="fp32").labelmap.voxels
    assert (by_torch != by_openvino).mean() < 1e-3


def test_a_box_is_segmented_as_in_the_whole_picture(card: ModelCard, tmp_path: Path) -> None:
    path = saved(tmp_path, picture(104)[0])
    whole = run(card, path).labelmap.voxels
    box = run(card, path, region=(-60.5, -10.5, -50.5, -10.5, -0.5, 0.5)).labelmap.voxels
    np.testing.assert_array_equal(box[0, 11:50, 11:60], whole[0, 11:50, 11:60])
    assert not box[0, :10].any()


def test_colours_are_refused_unless_they_are_grey(card: ModelCard, tmp_path: Path) -> None:
    image, mask = picture(105)
    grey = np.repeat(image[..., None], 3, axis=2)
    assert dice(run(card, saved(tmp_path, grey)).labelmap.voxels[0] > 0, mask > 0) > 0.9
    grey[..., 0] //= 2
    path = saved(tmp_path, grey)
    with pytest.raises(MismatchError, match=r"in colour, but the model takes grey.*--anyway"):
        run(card, path)
    assert run(card, path, anyway=True).labelmap.voxels.any()


def test_several_slices_are_segmented_one_by_one_if_asked_for(card: ModelCard) -> None:
    pictures = [picture(106 + n) for n in range(3)]
    voxels = np.stack([image for image, _ in pictures])
    volume = Volume(voxels, Geometry.from_spacing(voxels.shape, (0.5, 0.5, 3)), "stack")
    with pytest.raises(MismatchError, match="stack has 3 slices"):
        run(card, volume)
    result = run(card, volume, anyway=True)
    for plane, (_, mask) in zip(result.labelmap.voxels, pictures, strict=True):
        assert dice(plane > 0, mask > 0) > 0.9
    assert any("by itself" in warning for warning in result.warnings)


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1)])
def test_a_picture_of_one_line_is_refused_as_a_picture(
    shape: tuple[int, int], card: ModelCard, tmp_path: Path
) -> None:
    line = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
    with pytest.raises(InputError, match=r"is one pixel wide or high .* but a picture is needed"):
        run(card, saved(tmp_path, line))


def test_dropout_passes_are_refused(card: ModelCard, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no dropout"):
        run(card, saved(tmp_path, picture(107)[0]), dropout_passes=3)


def test_sizes_are_given_in_what_is_known(
    card: ModelCard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, _ = picture(111)
    result = run(card, saved(tmp_path, image))
    assert np.isnan(result.structures[0].volume_ml)
    assert result.report()["structures"][0]["volume_ml"] is None
    print_summary(result)
    assert "pixels" in capsys.readouterr().out
    film = Volume(image[None], Geometry.from_spacing((1, *image.shape), (2.0, 3.0, 1.0)), "film")
    result = run(card, film)
    print_summary(result)
    out = capsys.readouterr().out
    assert "cm2" in out
    assert f"{6 * result.structures[0].voxels / 100:.2f}" in out


def test_the_command_line_segments_a_picture(card: ModelCard, tmp_path: Path) -> None:
    image, mask = picture(108)
    path = saved(tmp_path, image)
    outputs = [tmp_path / "out.seg.nrrd", tmp_path / "preview.png"]
    arguments = ["segment", path, "--model", card.folder, "-o", outputs[0], "--device", "cpu"]
    assert main([str(part) for part in [*arguments, "--preview", outputs[1]]]) == 0
    labels, named = read_labelmap(outputs[0])
    assert [label.name for label in named] == ["Disc"]
    assert dice(labels.voxels[0] > 0, mask > 0) > 0.9
    drawn = np.array(Image.open(outputs[1]))
    factor = drawn.shape[1] / image.shape[1]
    edge = mask > np.roll(mask, 1, axis=1)
    j, i = (int((place + 0.5) * factor) for place in next(zip(*edge.nonzero(), strict=True)))
    near = drawn[j - 10 : j + 10, i - 30 : i + 30].reshape(-1, 3)
    assert (near == card.labels[0].color).all(axis=1).any(), "the outline runs along the disc"


def test_a_label_map_as_a_picture(card: ModelCard, tmp_path: Path) -> None:
    path = saved(tmp_path, picture(109)[0])
    out = tmp_path / "labels.png"
    arguments = ["segment", path, "--model", card.folder, "-o", out, "--device", "cpu"]
    assert main([str(part) for part in arguments]) == 0
    by_pillow = np.array(Image.open(out))
    np.testing.assert_array_equal(by_pillow, run(card, path).labelmap.voxels[0])


# Training


def test_scores_of_held_out_cases_are_kept(trained: Path) -> None:
    scores = json.loads((trained / "scores.json").read_text())
    assert scores["mean"]["dice"] > 0.9
    assert sorted(row["case"] for row in scores["cases"]) == [f"p{n}" for n in range(8)]
    assert (trained / "curves.png").is_file()
    assert (trained / "held-out.csv").read_text().startswith("case,group,fold,dice,iou")


def test_cases_of_one_group_are_held_out_together(trained: Path) -> None:
    rows = json.loads((trained / "scores.json").read_text())["cases"]
    folds = {row["case"]: row["fold"] for row in rows}
    assert all(folds[f"p{2 * n}"] == folds[f"p{2 * n + 1}"] for n in range(4))


class Stop(Progress):
    """Ends a training after some batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def step(self, stage: str, done: float, total: float) -> None:
        self.left -= 1
        if self.left < 0:
            raise Cancelled("stop")


@pytest.mark.slow
def test_a_training_that_was_stopped_ends_in_the_same_weights(
    trained: Path, tmp_path: Path
) -> None:
    config = load_config(dataset(tmp_path / "data"))
    options = RunOptions2D(tmp_path / "run", device="cpu")
    for batches in (3, 9):  # within the second epoch of the first fold, and within the second fold
        with pytest.raises(Cancelled, match="--resume"):
            train(config, options, Stop(batches))
        options = RunOptions2D(tmp_path / "run", resume=True, device="cpu")
    train(config, options, Progress())
    for name in ("fold_0", "fold_1"):
        ours, theirs = (
            load_file(at / f"best-{name}.safetensors") for at in (tmp_path / "run", trained)
        )
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": {"name": "radam", "lookahead": 2, "frozen_epochs": 1}},
        {"optimiser": {"schedule": "plateau", "patience": 1, "early_stopping": 1}, "keep": "best"},
        {"network": {"decoder": "unetplusplus", "deep_supervision": True}},
        {"augmentation": {"strength": "heavy", "orientation": "any", "stain": True}},
        {"image": {"fit": None, "patch": [64, 64]}, "precision": "bf16"},
    ],
)
def test_every_way_of_training_learns(changes: dict[str, object], tmp_path: Path) -> None:
    toml = dataset(tmp_path / "data", 4)
    if changes.get("image"):
        toml.write_text(toml.read_text().replace("fit = [64, 64]", "patch = [64, 64]"))
        changes = {name: value for name, value in changes.items() if name != "image"}
    config = load_config(toml, {"epochs": 3, "batch": 2, **changes})
    folder = train(config, RunOptions2D(tmp_path / "run", device="cpu", folds=(0,)), Progress())
    assert [member.name for member in load_card(folder).members] == ["fold_0"]
    entries = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if entry["event"] == "train"]
    assert min(losses) < losses[0] or len(losses) == 1
    load_model(load_card(folder))


def test_a_frozen_encoder_stays_as_it_was(tmp_path: Path) -> None:
    toml = dataset(tmp_path / "data", 4)
    changes = {"epochs": 1, "batch": 2, "optimiser": {"frozen_epochs": 1}}
    config = load_config(toml, changes)
    train(config, RunOptions2D(tmp_path / "run", device="cpu", folds=(0,)), Progress())
    from medsegai.training.unet2d.fold import Fold

    before = Fold(config, 0, torch.device("cpu")).network.state_dict()
    after = load_file(tmp_path / "run/best-fold_0.safetensors")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("encoder.")} <= same
    assert "segmentation_head.0.weight" not in same


def test_a_training_begins_with_all_weights_of_the_same_network(trained: Path) -> None:
    """And with those of the encoder where the network has other labels."""
    begin = str(trained / "best-fold_0.safetensors")
    toml, before = trained.parent / "data" / "training.toml", load_file(begin)
    config = load_config(toml, {"network": {"pretrained": begin}})
    fold = Fold(config, 0, torch.device("cpu"))
    same = {
        name: torch.equal(values, before[name])
        for name, values in fold.network.state_dict().items()
        if name in before
    }
    assert all(same.values())
    assert any(name.startswith("segmentation_head.") for name in same)
    assert "All layers" in fold.origin
    ring = Label(2, "Ring", (1, 2, 3))
    values = replace(config.data, threshold=None)
    labels = replace(config, labels=(*config.labels, ring), data=values)
    assert Fold(labels, 0, torch.device("cpu")).origin.startswith("Encoder: plain")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data": {"images": "nothing/*.png"}}, RequestError, "No file matches"),
        ({"data": {"label_suffix": "_x", "labels": "masks/p0.png"}}, RequestError, "such as 'p1'"),
        ({"data": {"groups": "none.csv"}}, InputError, "none.csv cannot be read"),
        ({"data": {"threshold": None}}, InputError, "data.threshold"),
        ({"folds": 5}, InputError, "4 patients cannot be held out in 5"),
        ({"folds": 1}, RequestError, "folds must be at least 2"),
        ({"loss": {"class_weights": [1.0]}}, RequestError, "class_weights needs 2 numbers"),
        ({"network": {"encoder": "vgg"}}, RequestError, "encoder 'vgg' is unknown"),
        ({"network": {"pretrained": "package"}}, ModelError, "No package carries"),
        ({"network": {"pretrained": "none.pth"}}, ModelError, "none.pth cannot be read"),
        ({"image": {"fit": [60, 64]}}, RequestError, "multiples of 32"),
        ({"image": {"size": 3}}, RequestError, "unknown"),
        ({"data": {"images": "/tmp/*.png"}}, RequestError, r"data\.images must be a pattern"),
        ({"data": {"images": ""}}, RequestError, r"data\.images must be a pattern"),
        ({"data": {"images": "images*/*.png"}}, RequestError, "p0.png have the same name"),
        ({"data": {"channels": 2}}, InputError, "has 1 channel, and the training file says 2"),
        ({"network": {"widths": [8]}}, RequestError, "widths must be 5 numbers"),
        ({"id": ""}, RequestError, "id must be text"),
        ({"labels": [LABEL, LABEL]}, RequestError, "label value 1 twice"),
        ({"labels": []}, RequestError, "labels is empty"),
        ({"labels": [{**LABEL, "value": 2}]}, RequestError, "labels must be 1 alone"),
        ({"data": {"threshold": 255}}, InputError, "No label map .* of the label 'Disc'"),
        ({"data": {"threshold": -1}}, RequestError, "threshold must be at least 0"),
        ({"image": {"mean": [0.5] * 3, "std": [1.0] * 3}}, RequestError, "has 3 numbers"),
        ({"optimiser": {"schedule": "plateau", "patience": 0}}, RequestError, "at least 1"),
        ({"loss": {"class_weights": [0.0, 0.0]}}, RequestError, "nothing to learn from"),
        ({"loss": {"dice": 0.0, "cross_entropy": 0.0}}, RequestError, "nothing to learn from"),
    ],
)
def test_a_training_that_cannot_be_is_refused(
    changes: dict[str, dict[str, object]], error: type[Exception], words: str, tmp_path: Path
) -> None:
    toml = dataset(tmp_path / "data")
    shutil.copytree(tmp_path / "data/images", tmp_path / "data/images2")
    with pytest.raises(error, match=words):
        train(load_config(toml, changes), RunOptions2D(tmp_path / "run", device="cpu"), Progress())
    assert not (tmp_path / "run").exists()


def test_a_training_that_never_learned_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it can be begun again with other rates; what was learned before a bad loss is kept."""
    config = load_config(dataset(tmp_path / "data"))
    options = RunOptions2D(tmp_path / "run", device="cpu")
    step, left = Fold._step, 0

    def bad_after(fold: Fold, images: torch.Tensor, classes: torch.Tensor) -> float:
        nonlocal left
        left -= 1
        return step(fold, images * (torch.nan if left < 0 else 1), classes)

    monkeypatch.setattr(Fold, "_step", bad_after)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"not a number in epoch 1\."):
            train(config, options, Progress())
        assert not (tmp_path / "run").exists()
    left = 9
    with pytest.raises(ModelError, match="not a number"):
        train(config, options, Progress())
    assert (tmp_path / "run/checkpoint.pt").exists()


def test_a_rate_that_is_far_too_high_is_said_to_be_in_the_only_epoch(tmp_path: Path) -> None:
    changes = {"epochs": 1, "patches_per_image": 1, "optimiser": {"learning_rate": 1e30}}
    config = load_config(dataset(tmp_path / "data", 4), changes)
    with pytest.raises(ModelError, match="are not numbers after epoch 1"):
        train(config, RunOptions2D(tmp_path / "run", device="cpu"), Progress())
    assert not (tmp_path / "run").exists()


def test_a_fold_needs_a_batch_to_learn_from(tmp_path: Path) -> None:
    toml = dataset(tmp_path / "data", 2)
    (tmp_path / "data" / "groups.csv").write_text("case,group\np0,a\np1,b\n")
    with pytest.raises(InputError, match="leaves 1 case to learn from"):
        train(
            load_config(toml, {"patches_per_image": 1}),
            RunOptions2D(tmp_path / "run", device="cpu"),
            Progress(),
        )


def test_a_training_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    toml = dataset(tmp_path / "data", 2)
    toml.write_bytes(b"\xef\xbb\xbf" + toml.read_bytes())
    assert load_config(toml).id == "discs"


def test_a_training_is_resumed_with_the_cases_that_it_began_with(trained: Path) -> None:
    """Else the folds were others, and cases were judged by networks that have learned from them."""
    run, toml = trained.parent / "resumed", trained.parent / "data/training.toml"
    shutil.copytree(trained, run)
    options = RunOptions2D(run, resume=True, device="cpu")
    train(load_config(toml), options, Progress())
    hidden = trained.parent / "data/images/p0.png"
    mask = trained.parent / "data/masks/p0.png"
    kept = hidden.read_bytes(), mask.read_bytes()
    for path in (hidden, mask):
        path.unlink()
    try:
        with pytest.raises(RequestError, match="started with other cases"):
            train(load_config(toml), options, Progress())
        mask.write_bytes(kept[1])
        Image.fromarray(255 - np.array(Image.open(io.BytesIO(kept[0])))).save(hidden)
        with pytest.raises(RequestError, match="started with other cases"):
            train(load_config(toml), options, Progress())
    finally:
        hidden.write_bytes(kept[0])
        mask.write_bytes(kept[1])


def test_volumes_of_several_slices_are_not_learned_from(tmp_path: Path) -> None:
    """Only the first slice was learned from, in silence."""
    toml = dataset(tmp_path / "data")
    volume = nibabel.Nifti1Image(
        np.zeros((70, 90, 3), np.uint8) + np.arange(3, dtype=np.uint8), np.eye(4)
    )
    for n in range(8):
        nibabel.save(volume, tmp_path / f"data/images/p{n}.nii")
    changes = {"data": {"images": "images/*.nii"}}
    with pytest.raises(InputError, match=r"p0.nii has 3 slices"):
        train(load_config(toml, changes), RunOptions2D(tmp_path / "run", device="cpu"), Progress())


def test_masks_of_another_size_and_unknown_labels_are_refused(tmp_path: Path) -> None:
    toml = dataset(tmp_path / "data")
    mask = tmp_path / "data/masks/p3.png"
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(mask)
    with pytest.raises(
        InputError, match=r"p3.png has 20 x 10 pixels, but its image .*p3.png has 90 x 70"
    ):
        train(load_config(toml), RunOptions2D(tmp_path / "run", device="cpu"), Progress())
    toml.write_text(toml.read_text().replace("threshold = 127\n", ""))
    Image.fromarray(picture(3)[1]).save(mask)
    with pytest.raises(InputError, match=r"holds the label 255, which the training file"):
        train(load_config(toml), RunOptions2D(tmp_path / "run", device="cpu"), Progress())


def test_the_rate_finder_draws_and_suggests(tmp_path: Path) -> None:
    toml = dataset(tmp_path / "data", 4)
    toml.write_text(toml.read_text().replace("batch = 4", "batch = 2"))
    arguments = ["train", "unet2d", str(toml), "-o", str(tmp_path / "run"), "--find-rate"]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert (tmp_path / "run/learning-rate.png").stat().st_size > 5000


# Import


def smp_state(config: UNet2DConfig, prefix: str = "") -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"{prefix}{key}": values for key, values in UNet2D(config).state_dict().items()}


@pytest.mark.usefixtures("imports_here")
@pytest.mark.parametrize(("decoder", "prefix"), [("unet", "model."), ("unetplusplus", "")])
def test_a_checkpoint_of_segmentation_models_pytorch_is_imported(
    decoder: str, prefix: str, tmp_path: Path
) -> None:
    config = UNet2DConfig("plain", decoder, 1, 1, (32, 16, 16, 8, 8))
    state = smp_state(config, prefix)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "lungs.pth")
    card = import_model(tmp_path / "lungs.pth", tmp_path / "models")
    assert (card.id, card.family, card.dimensions) == ("lungs", "unet2d", 2)
    assert UNet2DConfig.of(card.settings, 1, 1) == config
    assert card.settings["answer"] == "sigmoid"
    image = Volume(picture(110)[0][None], Geometry.from_spacing((1, 70, 90), (1, 1, 1)), "p")
    options = {"backend": "torch", "precision": "fp32", "probabilities": True}
    found = run(card, image, **options).probabilities[0, 0]
    network = UNet2D(config).eval()
    network.load_state_dict({key.removeprefix(prefix): values for key, values in state.items()})
    seen = torch.zeros(1, 1, 256, 256)
    seen[0, 0, :70, :90] = torch.from_numpy(picture(110)[0] / np.float32(255))
    with torch.no_grad():
        expected = network(seen).sigmoid()[0, 0, :70, :90]
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.usefixtures("imports_here")
def test_networks_that_we_do_not_have_are_refused(tmp_path: Path) -> None:
    state = smp_state(UNet2DConfig("resnet18", "unet", 3, 2, (16, 16, 8, 8, 8)))
    for change, words in (
        (
            {"encoder.layer1.9.conv1.weight": torch.zeros(1)},
            "an encoder that MedSegAI does not have",
        ),
        ({"decoder.blocks.0.attention1.attention.weight": torch.zeros(1)}, "attention"),
        ({"decoder.blocks.0.conv3.0.weight": torch.zeros(1)}, "differs in"),
    ):
        torch.save(state | change, tmp_path / "net.pth")
        with pytest.raises(ModelError, match=words):
            import_model(tmp_path / "net.pth", tmp_path / "models")
    assert not (tmp_path / "models" / "net").exists()


def test_inside_and_border_of_objects_that_touch() -> None:
    objects = np.zeros((6, 8), np.int32)
    objects[1:5, 1:4], objects[1:5, 4:7] = 1, 2
    target = inside_and_border(objects)
    np.testing.assert_array_equal((target == 1).nonzero(), ([2, 2, 3, 3], [2, 5, 2, 5]))
    np.testing.assert_array_equal(target > 0, objects > 0)


@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_the_border_of_objects_is_as_thick_as_asked_for(pixels: int) -> None:
    objects = np.zeros((14, 30), np.int32)
    objects[2:12, 2:15], objects[2:12, 15:28] = 1, 2
    target = inside_and_border(objects, pixels)
    inner = slice(2 + pixels, 12 - pixels)
    expected = np.where(objects > 0, 2, 0)
    expected[inner, 2 + pixels : 15 - pixels] = expected[inner, 15 + pixels : 28 - pixels] = 1
    np.testing.assert_array_equal(target, expected)
