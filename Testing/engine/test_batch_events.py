"""What `medsegai batch` prints is what the panel reads."""

import json

import pytest

from medsegai.progress import ProgressEvent
from medsegai.worker.batch_events import (
    CaseProgress,
    CaseState,
    Entry,
    case_event,
    flags_of,
    note_event,
    progress_event,
    read_event,
)


@pytest.mark.parametrize("state", CaseState)
def test_a_line_of_the_table_is_read_as_it_was_written(state: CaseState) -> None:
    entry = Entry("Fall 1 é", state, 12.5, 3, "Look at the hippocampus.")
    found = read_event(json.dumps(case_event(entry)))
    assert found == entry
    assert isinstance(found, Entry)
    assert found.state.is_over == (state in (CaseState.DONE, CaseState.FAILED))


def test_progress_is_read_as_it_was_written() -> None:
    event = progress_event("one", ProgressEvent("predict", 0.25, 7.0))
    assert read_event(json.dumps(event)) == CaseProgress("one", 0.25)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Loading weights ...",
        "3",
        "[" * 5000,
        json.dumps(note_event("A folder was left out.")),
        json.dumps({"event": "case", "case": "one", "state": "sleeping"}),
        json.dumps({"event": "case", "case": "one", "state": "done"}),
        json.dumps({"event": "progress", "case": "one", "fraction": "half"}),
        json.dumps({"event": "party", "case": "one"}),
    ],
)
def test_anything_else_is_not_an_event_of_a_case(line: str) -> None:
    assert read_event(line) is None


def test_flags_are_the_names_of_options_unless_they_have_others() -> None:
    assert flags_of("dropout_passes") == ("--dropout-passes",)
    assert flags_of("refinements") == ("--refinement",)
