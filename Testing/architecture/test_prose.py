"""What readers stumble over is found in pages, docstrings, comments and messages; plain English passes."""

import pytest

import prose_rules

WRONG = [
    "The path is no folder.",
    "These values are no labels.",
    "The file is kept, for it may hold corrections.",
    "Nothing is written, for the disk is full.",
    "The batch is gone on with.",
    "A run goes on from its last checkpoint.",
    "The user is told what is missing.",
    "The listener hears of each change.",
    "The listener hears why it failed.",
    "Shapes are fixed, for with free ones it is half as fast.",
    "The volume stands under a transform that bends space.",
    "A callback, told how many files are there.",
    "What there is to refine.",
    "What is handed over is checked.",
    "Voxels where the model is in doubt.",
    "Checkpoints from a stranger.",
    "It has 1 voxels.",
    "Start anew in another folder.",
    "The training was begun with other cases.",
    "These patients cannot be parted into folds.",
    "Label 9 is none of the labels.",
    "The checksum is not one.",
    "The volume left less right is large.",
]
RIGHT = [
    "There is no folder.",
    "The file is no longer there.",
    "It is kept, because it may hold corrections.",
    "A table, for each structure.",
    "A setting, for example a device.",
    "All of it, for a model that was never trained.",
    "Left and right are told apart.",
    "It has 1 voxel and 21 images.",
    "A T1 image of NIfTI-1 files.",
    "It is not one of the labels.",
    "Left minus right.",
]


@pytest.mark.parametrize("text", WRONG)
def test_private_english_is_found(text: str) -> None:
    assert list(prose_rules.document_problems(text))
    assert list(prose_rules.code_problems(f'"""{text}"""\n'))
    assert list(prose_rules.code_problems(f"# {text}\n"))
    assert list(prose_rules.code_problems(f"raise InputError(f'{{path}}: {text}')\n"))


@pytest.mark.parametrize("text", RIGHT)
def test_plain_english_passes(text: str) -> None:
    assert list(prose_rules.document_problems(text)) == []
    assert list(prose_rules.code_problems(f"# {text}\n")) == []


def test_what_runs_over_two_lines_is_found() -> None:
    comment = "x = 1  # a first comment\n\n# the path is\n# no folder\n"
    assert list(prose_rules.code_problems(comment))
    assert list(prose_rules.document_problems("It is\nno folder."))


def test_code_and_words_of_the_screen_are_left_out() -> None:
    page = "`it is no folder` *Hand over* [a](is-no-page.md)\n```\nit is no folder\n```\n"
    assert list(prose_rules.document_problems(page)) == []
