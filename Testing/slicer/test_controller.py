"""What happens when: the controller with a made-up panel, scene, application and worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fake_worker
from controller_help import HEAD, House, Node
from medsegai.errors import (
    Cancelled,
    DeviceError,
    InputError,
    MedSegAIError,
    WorkerError,
)
from medsegai.models.card import Channel
from medsegai.progress import ProgressEvent
from MedSegAILib.controller import texts
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.panel_values import Choice, StructureRow, Verdict
from MedSegAILib.worker.location import WorkerLocation

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_model_of_monai_asks_for_monai(house: House) -> None:
    choice = house.panel.choice()
    house.panel.chosen = replace(choice, cards=(replace(house.card, family="monai"),))
    house.press_segment()
    assert house.host.prepared_for == ["monai"]


def test_a_job_from_the_button_to_the_table(house: House) -> None:
    house.press_segment()
    (request,) = house.client.requests
    assert [volume.source for volume in request.inputs] == ["Head"]
    assert request.models == (str(house.card.folder),)
    assert request.candidates, "what AI correct works from"
    assert house.host.prepared == 1
    assert house.panel.state == "running"
    house.client.listener.progressed(ProgressEvent("predict", 0.25, 10.0))
    assert house.host.status == ["MedSegAI: Predicting – 25 % – 10 s left"]
    assert house.panel.progress == [0.25]
    house.finish()
    assert house.panel.state == "idle"
    ((source, written, output, frame),) = house.scene.written
    assert source is house.head
    assert written.structures[0].voxels == 120
    assert (output, frame) == (OutputChoice(), None)
    (node,) = house.panel.results.last("choose")
    assert node.GetName() == "Head segmentation"
    assert house.panel.error == ""


def test_a_result_is_told_in_one_line_and_the_rest_is_folded(house: House) -> None:
    house.scene.notes = ("Left hippocampus was painted by you and left as it was.",)
    good = StructureRow("1", "Left hippocampus", (1, 2, 3), 4.0, "good", "", "notstarted")
    house.scene.rows = [good, replace(good, segment_id="2", quality="poor")]
    house.press_segment()
    house.finish()
    (verdict,) = house.panel.results.last("show_verdict")
    assert (verdict.line, verdict.tone) == ("2 structures, 1 to check", "doubt")
    assert verdict.details.splitlines() == [
        "The image is made up.",
        "Not found: Brain-Stem, Absent.",
        "It took 1 s on cpu.",
        "Research software. Not for diagnostic use.",
    ]
    assert house.panel.message == "Left hippocampus was painted by you and left as it was."


def test_nothing_of_an_older_result_is_left_standing(house: House) -> None:
    house.scene.rows = [StructureRow("1", "Left hippocampus", (1, 2, 3), 4.0, "poor")]
    house.press_segment()
    house.finish()
    house.panel.show_message("Uncertain region 3 of 7.")
    house.controller.results.show(None)
    assert house.panel.results.last("show_verdict") == (Verdict(),)
    assert house.panel.message == ""


@pytest.mark.parametrize(
    ("qualities", "line", "tone"),
    [
        (["good"] * 31 + ["check"], "32 structures, 1 to check", "doubt"),
        (["good"] * 2, "2 structures, none to check", ""),
        ([""] * 3, "3 structures", ""),
        (["poor"], "1 structure, 1 to check", "doubt"),
        (
            ["check"] * 17 + ["good"] * 15,
            "32 structures, 17 to check: was the model made for this kind",
            "problem",
        ),
    ],
)
def test_the_one_sentence_that_matters_comes_first(
    qualities: list[str], line: str, tone: str
) -> None:
    rows = [StructureRow(str(n), "A", (1, 2, 3), 4.0, word) for n, word in enumerate(qualities)]
    said = texts.verdict(rows, {})
    assert said.line.startswith(line)
    assert said.tone == tone
    assert len(said.line) < 90


def test_options_of_the_panel_reach_the_request(house: House) -> None:
    house.choose(options={"members": ("axial",), "device": "cuda", "uncertainty": True})
    house.press_segment()
    (request,) = house.client.requests
    assert request.members == ("axial",)
    assert request.device == "cuda"
    assert request.uncertainty


def test_the_region_reaches_the_request(house: House) -> None:
    house.choose(region=Node("Box"))
    house.press_segment()
    assert house.client.requests[0].region == (0.0, 1.0, 0.0, 2.0, 0.0, 3.0)


def test_several_models_run_together_with_all_their_members(house: House, tmp_path: Path) -> None:
    other = replace(house.card, id="other", name="Other", folder=tmp_path / "other")
    other.folder.mkdir()
    (other.folder / "card.json").touch()
    house.choose(cards=(house.card, other), options={"members": ("axial",)})
    house.press_segment()
    (request,) = house.client.requests
    assert request.models == (str(house.card.folder), str(other.folder))
    assert request.members == ()


def test_on_another_computer_a_model_is_found_by_its_id(house: House) -> None:
    house.host.where = WorkerLocation.ssh("server")
    house.press_segment()
    assert house.client.requests[0].models == ("brain",)
    assert house.host.prepared == 0, "nothing has to be installed here"


def test_the_input_is_the_one_at_the_start_whatever_is_chosen_later(house: House) -> None:
    house.press_segment()
    house.choose(nodes={"MR": Node("Another")})
    house.finish()
    assert house.scene.written[0][0] is house.head


# --- the queue -------------------------------------------------------------------------------------


def test_a_second_press_adds_to_the_queue_and_both_are_done(house: House) -> None:
    house.press_segment()
    house.choose(nodes={"MR": Node("Second")})
    house.press_segment()
    assert len(house.client.requests) == 1
    assert [entry.title for entry in house.queue.entries] == ["Head: Brain", "Second: Brain"]
    house.finish()
    assert house.panel.state == "running"
    house.finish()
    assert [source.GetName() for source, *_ in house.scene.written] == ["Head", "Second"]
    assert house.panel.state == "idle"
    (entries,) = house.panel.queue.last("show")
    assert [str(entry.state) for entry in entries] == ["done", "done"]


def test_a_job_waits_while_a_script_uses_the_worker(house: House) -> None:
    house.client.busy = True
    house.press_segment()
    assert house.client.requests == []
    assert str(house.queue.entries[0].state) == "waiting"
    house.client.busy = False
    house.client.freed.emit()
    assert len(house.client.requests) == 1


def test_the_buttons_of_the_queue_reach_it(house: House) -> None:
    for name in ("A", "B", "C"):
        house.choose(nodes={"MR": Node(name)})
        house.press_segment()
    first, second, third = house.queue.entries
    part = house.panel.queue
    part.move_requested.emit(third, -1)
    assert house.queue.entries == (first, third, second)
    part.cancel_requested.emit(second)
    part.again_requested.emit(second)
    assert len(house.queue.entries) == 4
    part.remove_requested.emit(third)
    part.clear_requested.emit()
    assert [entry.title for entry in house.queue.entries] == ["A: Brain", "B: Brain"]


def test_one_that_fails_does_not_stop_the_next(house: House) -> None:
    house.press_segment()
    house.press_segment()
    house.fail(WorkerError("It crashed."))
    assert house.panel.error == "It crashed."
    assert house.panel.log_offered, "the worker's own words are one click away"
    house.finish()
    assert len(house.scene.written) == 1


def test_every_frame_becomes_a_job_of_its_own_in_one_segmentation(house: House) -> None:
    house.scene.sequence = range(3)
    house.choose(every_frame=True)
    assert house.panel.frames == 3
    house.press_segment()
    titles = [entry.title for entry in house.queue.entries]
    assert titles == [f"Head: Brain, frame {number}" for number in (1, 2, 3)]
    for _ in range(3):
        house.finish()
    sources = [request.inputs[0].source for request in house.client.requests]
    assert sources == ["Head 0", "Head 1", "Head 2"]
    assert [frame for *_, frame in house.scene.written] == [0, 1, 2]
    nodes = [output.node for _source, _result, output, _frame in house.scene.written]
    assert nodes[0] is None
    assert nodes[1].GetName() == "Head segmentation"
    assert nodes[2] is nodes[1], "the frames share the segmentation that the first became"


# --- the end of a job ------------------------------------------------------------------------------


def test_the_current_frame_is_the_one_that_was_shown_when_the_button_was_pressed(
    house: House,
) -> None:
    """Whatever the browser of the sequence shows when the job's turn comes, and when it ends."""
    house.scene.sequence, house.scene.frame = range(3), 1
    for _ in range(2):
        house.press_segment()
    assert house.client.requests[0].inputs[0].source == "Head"
    house.scene.frame = 2
    house.finish()
    assert house.panel.message.startswith("The result is that of frame 2 of Head, which now")
    assert house.client.requests[1].inputs[0].source == "Head 1", "the frame, and not what is shown"
    house.scene.frame = 1
    house.finish()
    assert house.panel.message == ""
    assert len(house.scene.written) == 2


@pytest.mark.parametrize("mode", [OutputMode.UPDATE, OutputMode.ADD, OutputMode.PREVIEW])
def test_a_segmentation_that_shows_another_frame_is_not_changed(
    house: House, mode: OutputMode
) -> None:
    node = Node("Head segmentation")
    house.scene.sequence, house.scene.frame, house.scene.following = range(3), 1, [node]
    house.choose(output=OutputChoice(mode, node))
    house.press_segment()
    house.scene.frame = 2
    house.finish()
    (entry,) = house.queue.entries
    assert str(entry.state) == "failed"
    assert "Go to that frame" in house.panel.error
    assert house.scene.written == house.scene.previews == []
    house.scene.frame = 1
    house.panel.queue.again_requested.emit(entry)
    assert str(entry.state) == "done"
    assert len(house.scene.written) + len(house.scene.previews) == 1
    assert len(house.client.requests) == 1, "nothing was computed again"


def test_an_output_that_cannot_be_changed_is_refused_before_the_job(house: House) -> None:
    house.scene.output_error = InputError("Shells is made of surfaces.")
    house.choose(output=OutputChoice(OutputMode.UPDATE, Node("Shells")))
    assert house.panel.plan == ("Shells is made of surfaces.", False)
    house.press_segment()
    assert house.panel.error == "Shells is made of surfaces."
    assert house.client.requests == []


def test_a_result_of_voxels_that_were_replaced_meanwhile_says_so(house: House) -> None:
    house.press_segment()
    house.scene.checked = 2
    house.finish()
    assert house.panel.message.startswith("The voxels of Head were changed while")
    house.press_segment()
    house.finish()
    assert house.panel.message == ""


@pytest.mark.parametrize("error", [DeviceError("No device."), InputError("Not finite.")])
def test_a_failed_job_is_told_and_leaves_the_scene_alone(
    house: House, error: MedSegAIError
) -> None:
    house.press_segment()
    house.fail(error)
    assert house.panel.state == "idle"
    assert house.panel.error == str(error)
    assert not house.panel.log_offered
    assert house.scene.written == []
    house.press_segment()
    assert len(house.client.requests) == 2


def test_cancel_is_no_error_and_leaves_the_scene_alone(house: House) -> None:
    house.press_segment()
    house.panel.cancel_requested.emit()
    assert house.panel.state == "cancelling"
    assert house.client.cancelled == 1
    house.fail(Cancelled("Stopped."))
    assert house.panel.state == "idle"
    assert house.panel.message == "Stopped."
    assert house.panel.error == ""
    assert house.scene.written == []


def test_cancel_without_a_job_does_nothing(house: House) -> None:
    house.panel.cancel_requested.emit()
    assert house.client.cancelled == 0
    assert house.panel.state == "idle"


@pytest.mark.parametrize("agreed", [True, False])
def test_the_segmentation_of_another_scan_is_replaced_only_where_the_user_agrees(
    house: House, agreed: bool
) -> None:
    """The output that was chosen for the patient before is still chosen."""
    mine, other = Node("Head segmentation"), Node("The next patient")
    house.host.consent = agreed
    house.choose(output=OutputChoice(OutputMode.UPDATE, mine))
    house.press_segment()
    assert house.host.questions == []
    house.finish()
    house.choose(nodes={"MR": other})
    house.press_segment()
    (question,) = house.host.questions
    assert question.startswith("Head segmentation was made from Head, but The next patient is")
    assert len(house.client.requests) == 1 + agreed
    house.choose(output=OutputChoice(OutputMode.ADD, mine))
    house.press_segment()
    assert len(house.host.questions) == 1, "nothing is replaced"


def test_a_preview_waits_for_a_yes(house: House) -> None:
    house.choose(output=OutputChoice(OutputMode.PREVIEW))
    house.press_segment()
    house.finish()
    assert house.scene.written == []
    assert house.panel.preview.last("show") == ("Preview 1",)
    house.panel.preview.accepted.emit()
    assert house.scene.done == [("accept",)]
    assert house.panel.preview.last("show") == ("",)
    (node,) = house.panel.results.last("choose")
    assert node.GetName() == "Head segmentation"


def test_what_an_accepted_preview_could_not_do_is_shown(house: House) -> None:
    house.choose(output=OutputChoice(OutputMode.PREVIEW))
    house.press_segment()
    house.finish()
    house.scene.notes = ("Not changed, because they are locked: Stem.",)
    house.panel.preview.accepted.emit()
    assert house.panel.message == "Not changed, because they are locked: Stem."


def test_previews_are_answered_one_after_the_other(house: House) -> None:
    house.choose(output=OutputChoice(OutputMode.PREVIEW))
    house.press_segment()
    house.press_segment()
    house.finish()
    house.finish()
    assert house.panel.preview.last("show") == ("Preview 1",)
    house.panel.preview.rejected.emit()
    assert house.panel.preview.last("show") == ("Preview 2",)
    house.scene.write_error = InputError("The volume has left the scene.")
    house.panel.preview.accepted.emit()
    assert house.panel.error == "The volume has left the scene."
    assert house.panel.preview.last("show") == ("Preview 2",), "it can still be rejected"
    house.scene.write_error = InputError("The preview has left the scene.")
    house.scene.gone.append(house.scene.previews[1].node)
    house.panel.preview.accepted.emit()
    assert house.panel.error == "The preview has left the scene."
    assert house.panel.preview.last("show") == ("",)
    house.panel.preview.accepted.emit()
    assert house.scene.done == [("reject",)], "there is none left"


DEFECTS = [
    RuntimeError("made up"),
    MemoryError("made up"),
    KeyError("made up"),
    OSError(28, "full"),
]


@pytest.mark.parametrize("error", DEFECTS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("mode", [OutputMode.NEW, OutputMode.PREVIEW])
def test_a_result_that_the_scene_cannot_take_is_told_and_kept(
    house: House, error: Exception, mode: OutputMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise error

    house.choose(output=OutputChoice(mode))
    house.press_segment()
    with monkeypatch.context() as patch:
        patch.setattr(house.scene, "write", full)
        patch.setattr(house.scene, "preview", full)
        house.finish()
    (entry,) = house.queue.entries
    assert str(entry.state) == "failed"
    assert type(error).__name__ in house.panel.error
    assert house.panel.log_offered
    assert house.panel.state == "idle"
    house.panel.queue.again_requested.emit(entry)
    assert str(entry.state) == "done"
    assert len(house.scene.written) + len(house.scene.previews) == 1
    assert len(house.client.requests) == 1, "nothing was computed again"


def test_a_preview_that_cannot_be_accepted_stays(house: House) -> None:
    house.choose(output=OutputChoice(OutputMode.PREVIEW))
    house.press_segment()
    house.finish()
    house.scene.write_error = RuntimeError("made up")
    house.panel.preview.accepted.emit()
    assert "RuntimeError: made up" in house.panel.error
    assert house.panel.log_offered
    house.scene.write_error = None
    house.panel.preview.accepted.emit()
    assert house.scene.done == [("accept",)]


def test_how_long_it_takes_is_learnt_and_told(house: House) -> None:
    house.choose()
    assert "needs about 1.5 GB." in house.panel.plan[0]
    house.press_segment()
    house.finish()
    house.choose()
    assert "about 1 s" in house.panel.plan[0]
    assert json.loads(house.host.settings["model_times"])


# --- before the job --------------------------------------------------------------------------------


def test_the_plan_names_members_device_and_memory(house: House) -> None:
    house.choose()
    text, ready = house.panel.plan
    assert ready
    assert text == "Runs axial, coronal on the fastest available device; needs about 1.5 GB."
    assert house.panel.details == f"Brain 1.2 on Head ({HEAD.geometry.describe()})"
    house.choose(options={"members": ("coronal",), "device": "cuda:1"})
    assert house.panel.plan[0].startswith("Runs coronal on cuda:1;")


def test_many_members_are_counted_and_not_named(house: House) -> None:
    members = tuple(replace(house.card.members[0], name=f"fold_{n}") for n in range(5))
    house.choose(cards=(replace(house.card, members=members),))
    assert house.panel.plan[0].startswith("Runs 5 networks on ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cards": ()}, "no model"),
        ({"options": {"fusion": "median"}}, "fusion"),
        ({"options": {"dropout_passes": 5000}}, "dropout-passes"),
        ({"output": OutputChoice(OutputMode.UPDATE)}, "The output segmentation is not chosen"),
        ({"every_frame": True, "output": OutputChoice(OutputMode.PREVIEW)}, "Every frame"),
    ],
)
def test_the_plan_says_why_nothing_can_run_and_the_button_says_the_same(
    house: House, change: dict[str, Any], reason: str
) -> None:
    house.choose(**change)
    text, ready = house.panel.plan
    assert not ready
    house.press_segment()
    assert house.panel.error == text
    assert house.client.requests == []
    with pytest.raises(MedSegAIError, match=reason):
        raise MedSegAIError(text)


def several_channels(house: House) -> Choice:
    channels = (Channel("T1", "MR"), Channel("FLAIR", "MR"), Channel("T2", "MR", required=False))
    card = replace(house.card, channels=channels)
    return Choice({"T1": Node("T1"), "FLAIR": Node("FLAIR"), "T2": None}, (card,))


def test_channels_that_may_be_left_out_can_be(house: House) -> None:
    house.panel.chosen = several_channels(house)
    house.press_segment()
    assert [item.source for item in house.client.requests[0].inputs] == ["T1", "FLAIR"]  # type: ignore[union-attr]


def test_a_channel_that_is_missing_is_named(house: House) -> None:
    chosen = several_channels(house)
    house.panel.chosen = replace(chosen, nodes={**chosen.nodes, "FLAIR": None})
    house.press_segment()
    assert house.panel.error == "Brain needs 2 images. Choose a volume for FLAIR."


def test_channels_are_guessed_when_a_model_takes_several(house: House) -> None:
    house.panel.model_changed.emit()
    assert house.panel.guess == {}
    chosen = several_channels(house)
    house.panel.chosen = replace(chosen, nodes={**chosen.nodes, "FLAIR": None})
    house.panel.model_changed.emit()
    assert {name: node and node.GetName() for name, node in house.panel.guess.items()} == {
        "T1": "T1",
        "FLAIR": "FLAIR",
        "T2": None,
    }


def test_channels_that_were_chosen_are_not_guessed_again(house: House) -> None:
    house.panel.chosen = several_channels(house)
    house.controller.enter()
    assert house.panel.guess == {}
    nodes = {"T1": Node("T1"), "FLAIR": None, "T2": None}
    house.panel.chosen = replace(house.panel.chosen, nodes=nodes)
    house.controller.enter()
    assert house.panel.guess["FLAIR"].GetName() == "FLAIR"


def test_the_log_is_shown_when_asked_for(house: House) -> None:
    house.panel.log_requested.emit()
    assert house.host.shown == [("Log of MedSegAI", "what the worker said")]


def test_the_controller_loads_neither_qt_nor_anything_heavy() -> None:
    heavy = ("qt", "torch", "SimpleITK", "nibabel", "scipy", "slicer")
    code = (
        "import sys, MedSegAILib.controller;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "MedSegAI")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() in ("[]", "['slicer']"), done.stderr  # the translation asks for it
    assert fake_worker.LABELS


def test_a_job_that_stands_still_is_told(house: House) -> None:
    house.press_segment()
    house.client.stalled.emit()
    assert "No progress for a long time" in house.panel.message
    house.finish()
    assert house.panel.message == ""


@pytest.mark.parametrize("consent", [True, False])
def test_a_scan_that_the_model_was_not_made_for_is_asked_about(house: House, consent: bool) -> None:
    """Before anything travels to the worker; and not again where the option was chosen."""
    house.host.consent = consent
    house.scene.volume = replace(house.scene.volume, modality="MR")
    card = replace(house.card, channels=(Channel("MR", "CT"),))
    house.choose(cards=(card,))
    house.press_segment()
    (question,) = house.host.questions
    assert "is a scan of MR, but the model" in question
    assert question.endswith("Segment it anyway?")
    assert [request.anyway for request in house.client.requests] == ([True] if consent else [])
