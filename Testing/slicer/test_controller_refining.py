"""Refining in the panel, without a window and a scene: what is previewed, applied, given up, and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controller_help import HEAD, House, Node
from medsegai.errors import Cancelled, DeviceError, InputError, WorkerError
from medsegai.models.refinement import Refinement
from medsegai.progress import ProgressEvent
from medsegai.worker.requests import RefinementRequest, RefinementResult
from MedSegAILib.panel_values import RefineChoice, StructureRow

CHANGED = RefinementResult(HEAD, ("Remove islands: 3 voxels changed, 0.01 ml.",), ({},))
SAME = RefinementResult(HEAD)


class Ward(House):
    """The panel's section, in which a segmentation was chosen."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.node, self.view = Node("Head segmentation"), self.panel.refine
        self.choice = RefineChoice(self.node, self.head, refinement=Refinement("islands"))
        self.view.answers["choice"] = self.choice

    def press(self, button: str) -> None:
        getattr(self.view, f"{button}_requested").emit()

    @property
    def state(self) -> tuple[bool, bool]:
        """Whether something runs, and whether a preview is shown."""
        running, previewing = self.view.last("show_state")
        return running, previewing

    @property
    def message(self) -> str:
        return str(self.view.last("show_message")[0])


@pytest.fixture
def house(tmp_path: Path) -> Ward:
    return Ward(tmp_path)


def test_apply_runs_in_the_worker_and_writes_the_answer(house: Ward) -> None:
    house.press("apply")
    (asked,) = house.client.requests
    assert isinstance(asked, RefinementRequest)
    assert house.scene.done == [("draft", house.node, [Refinement("islands")], (), house.head)]
    assert house.host.prepared == 1
    assert house.state == (True, False)
    assert house.panel.state == "running"
    assert house.queue.entries[0].title == "Head segmentation: Remove islands"
    house.client.listener.progressed(ProgressEvent("refine", 0.5))
    assert house.panel.progress == [0.5]
    house.finish(CHANGED)
    assert house.scene.done[-1] == ("write_refined", house.node)
    assert house.message == "\n".join(CHANGED.words)
    assert house.state == (False, False)


@pytest.mark.parametrize("button", ["apply", "preview"])
def test_an_answer_that_the_scene_cannot_take_is_kept_with_what_it_is_of(
    house: Ward, button: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError("made up")

    house.press(button)
    with monkeypatch.context() as patch:
        patch.setattr(house.scene, "write_refined", full)
        patch.setattr(house.scene, "preview_refined", full)
        house.finish(CHANGED)
    (entry,) = house.queue.entries
    assert str(entry.state) == "failed"
    assert "MemoryError: made up" in house.message
    assert house.panel.log_offered
    house.panel.queue.again_requested.emit(entry)
    assert str(entry.state) == "done"
    assert CHANGED.words[0] in house.message
    assert house.state == (False, button == "preview")
    assert len(house.client.requests) == 1


def test_a_preview_that_cannot_be_applied_stays(house: Ward) -> None:
    house.press("preview")
    house.finish(CHANGED)
    house.scene.write_error = RuntimeError("made up")
    house.press("apply")
    assert "RuntimeError: made up" in house.panel.error
    assert house.state == (False, True)
    house.scene.write_error = None
    house.press("apply")
    assert house.scene.done[-1] == ("accept",)


def test_a_preview_is_shown_and_applied_as_it_is(house: Ward) -> None:
    house.press("preview")
    house.finish(CHANGED)
    assert len(house.scene.previews) == 1
    assert ("write_refined", house.node) not in house.scene.done
    assert house.state == (False, True)
    assert "preview" in house.message
    assert CHANGED.words[0] in house.message
    assert "Not changed: Stem." in house.message
    house.press("apply")
    assert len(house.client.requests) == 1, "what was shown is what becomes of it"
    assert house.scene.done[-1] == ("accept",)
    assert house.message == CHANGED.words[0]
    assert house.state == (False, False)
    house.press("apply")
    assert len(house.client.requests) == 2


def test_a_preview_is_gone_to_and_its_colours_are_told(house: Ward) -> None:
    house.press("preview")
    house.finish(CHANGED)
    assert house.scene.done[-1] == ("jump", (1.0, 2.0, 3.0))
    assert "Green would be added, red removed" in house.message


def test_cancel_takes_the_preview_away(house: Ward) -> None:
    house.press("preview")
    house.finish(CHANGED)
    house.press("cancel")
    assert house.scene.done[-1] == ("reject",)
    assert "Nothing was changed" in house.message
    assert house.state == (False, False)
    house.press("cancel")
    assert house.scene.done.count(("reject",)) == 1


def test_another_choice_takes_the_preview_away(house: Ward) -> None:
    house.press("preview")
    house.view.choice_changed.emit()
    house.finish(CHANGED)
    house.view.choice_changed.emit()
    assert house.scene.done[-1] == ("reject",)
    assert "other choices" in house.message
    house.view.choice_changed.emit()
    assert house.scene.done.count(("reject",)) == 1


def test_a_second_preview_takes_the_place_of_the_first(house: Ward) -> None:
    for _ in range(2):
        house.press("preview")
        house.finish(CHANGED)
    assert house.scene.done.count(("reject",)) == 1
    assert house.state == (False, True)


def test_edits_of_a_preview_that_is_withdrawn_are_told(house: Ward) -> None:
    house.scene.kept_edits = "The preview had been edited."
    house.press("preview")
    house.finish(CHANGED)
    house.view.choice_changed.emit()
    assert house.message.endswith("\nThe preview had been edited.")
    for _ in range(2):
        house.press("preview")
        house.finish(CHANGED)
    assert house.message.endswith("\nThe preview had been edited.")
    assert CHANGED.words[0] in house.message


def test_a_job_that_ends_leaves_a_preview_of_another_segmentation_alone(house: Ward) -> None:
    house.press("preview")
    house.finish(CHANGED)
    house.panel.results.segmentation_chosen.emit(Node("Another result"))
    assert ("reject",) not in house.scene.done
    assert "choose" not in [name for name, *_ in house.view.told]
    house.press("cancel")
    other = Node("Another result")
    house.panel.results.segmentation_chosen.emit(other)
    assert house.view.last("choose") == (other,), "it follows the table again"


def test_cancel_stops_what_runs_and_what_waits(house: Ward) -> None:
    house.press("apply")
    house.press("apply")
    assert len(house.queue.entries) == 1, "one at a time"
    house.press("cancel")
    assert house.client.cancelled == 1
    house.fail(Cancelled("The job was stopped. The scene was not changed."))
    assert house.message == "The job was stopped. The scene was not changed."
    assert house.view.last("show_message")[1:] == (False,)
    house.press_segment()
    house.press("apply")
    assert house.state == (True, False)
    assert "waiting in the queue" in house.message
    house.press("cancel")
    assert "before it started" in house.message
    assert house.state == (False, False)


def test_a_job_that_waits_reads_the_segments_when_its_turn_comes(house: Ward) -> None:
    house.press_segment()
    house.press("apply")
    assert len([item for item in house.scene.done if item[0] == "draft"]) == 1
    house.finish()
    assert len([item for item in house.scene.done if item[0] == "draft"]) == 2
    assert isinstance(house.client.requests[-1], RefinementRequest)
    house.finish(CHANGED)
    assert house.scene.done[-1] == ("write_refined", house.node)


def test_where_nothing_changes_there_is_no_preview(house: Ward) -> None:
    for button in ("preview", "apply"):
        house.press(button)
        house.finish(SAME)
        assert house.message.startswith("The refinements did not find anything to change.")
        assert house.state == (False, False)
    assert house.scene.previews == []
    assert ("write_refined", house.node) not in house.scene.done


def test_what_cannot_be_refined_is_told_before_anything_runs(house: Ward) -> None:
    house.scene.read_error = InputError("Liver and Lesion overlap.")
    house.press("apply")
    assert house.view.last("show_message") == ("Liver and Lesion overlap.", True)
    assert house.queue.entries == ()
    house.scene.read_error, house.host.prepare_error = None, DeviceError("No torch.")
    house.press("preview")
    assert house.message == "No torch."
    assert house.client.requests == []


def test_without_a_tick_nothing_is_meant(house: Ward) -> None:
    house.view.answers["choice"] = RefineChoice(house.node, None, False, (), Refinement("islands"))
    house.press("apply")
    assert "No segment is ticked" in house.message
    assert house.client.requests == []
    chosen = RefineChoice(house.node, None, False, ("a",), Refinement("islands"))
    house.view.answers["choice"] = chosen
    house.press("apply")
    assert house.scene.done[-1] == ("draft", house.node, [Refinement("islands")], ("a",), None)


def test_all_segments_are_meant_also_where_some_were_ticked_before(house: Ward) -> None:
    chosen = RefineChoice(house.node, None, True, ("a",), Refinement("islands"))
    house.view.answers["choice"] = chosen
    house.press("apply")
    assert house.scene.done[-1] == ("draft", house.node, [Refinement("islands")], (), None)


def test_errors_are_told_and_the_section_works_on(house: Ward) -> None:
    house.press("apply")
    house.fail(WorkerError("The worker crashed."))
    assert house.view.last("show_message") == ("The worker crashed.", True)
    assert house.panel.log_offered
    house.scene.write_error = InputError("Head segmentation was changed while it was refined.")
    house.press("apply")
    house.finish(CHANGED)
    assert "was changed while" in house.message
    house.scene.write_error = None
    house.press("preview")
    house.finish(CHANGED)
    house.scene.write_error = InputError("The preview has left the scene.")
    house.press("apply")
    assert "has left the scene" in house.message
    assert house.state == (False, False)


def test_the_voxels_are_not_kept_by_the_list_of_jobs(house: Ward) -> None:
    house.press("apply")
    job: Any = house.queue.entries[0].listener
    assert job.reading.read_as is not None
    house.finish(CHANGED)
    assert job.reading.read_as is None
    house.queue.again(house.queue.entries[0])
    house.fail(WorkerError("crashed"))
    assert job.reading.read_as is None


def test_the_section_follows_the_result_and_its_segments(house: Ward) -> None:
    house.scene.rows = [StructureRow("001_A", "A", (1, 2, 3), 4.5)]
    house.panel.results.segmentation_chosen.emit(house.node)
    assert house.view.last("choose") == (house.node,)
    house.view.segmentation_chosen.emit(house.node)
    assert [row.name for row in house.view.last("show_segments")[0]] == ["A"]
    assert house.view.last("choose_image")[0].GetName() == "Head"
    house.view.segmentation_chosen.emit(None)
    assert house.view.last("show_segments") == ((),)
    house.scene.gone.append(house.node)
    house.controller.enter()
    assert house.view.last("show_segments") == ((),)


def test_the_table_is_filled_again_where_it_shows_what_changed(house: Ward) -> None:
    house.controller.results.show(Node("Another"))
    count = len(house.panel.results.told)
    house.press("apply")
    house.finish(CHANGED)
    assert len(house.panel.results.told) == count, "it shows another one"
    house.controller.results.show(house.node)
    count = len(house.panel.results.told)
    house.press("preview")
    house.finish(CHANGED)
    assert len(house.panel.results.told) == count, "nothing has changed yet"
    house.press("apply")
    assert [told[0] for told in house.panel.results.told[count:]].count("show") == 1


def test_a_closed_scene_takes_jobs_and_previews_along(house: Ward) -> None:
    house.press("preview")
    house.finish(CHANGED)
    house.controller.scene_closes()
    assert house.state == (False, False)
    assert ("reject",) not in house.scene.done, "there is nothing left to reject"
    house.press("apply")
    house.controller.scene_closes()
    assert house.client.cancelled == 1
