"""The documents keep up with the code: commands, exit codes, make targets, version, links."""

import argparse
import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import prose_rules
from medsegai import __version__, errors
from medsegai.cli import build_parser

REPOSITORY = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def documents() -> dict[Path, str]:
    paths = [
        path
        for folder in ("*", "docs/**/*", ".github/**/*")
        for path in REPOSITORY.glob(f"{folder}.md")
    ]
    return {path: path.read_text() for path in sorted(paths)}


def commands(parser: argparse.ArgumentParser, name: str = "medsegai") -> Iterator[str]:
    """Every command as a user types it: `medsegai segment`, `medsegai models list`."""
    subparsers = [item for item in parser._actions if isinstance(item, argparse._SubParsersAction)]
    for action in subparsers:
        for word, subparser in action.choices.items():
            yield from commands(subparser, f"{name} {word}")
    if not subparsers:
        yield name


def undocumented(names: Iterator[str], text: str) -> list[str]:
    return [name for name in names if not re.search(rf"\b{re.escape(name)}(?![\w-])", text)]


def broken_links(path: Path, text: str) -> list[str]:
    """Links to files that are not there, or to headings that their file does not have."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (heading and heading not in headings(file.read_text())):
            found.append(f"{path.name}: {target}")
    return found


def headings(text: str) -> set[str]:
    """The anchors of a Markdown file, formed as GitHub forms them."""
    titles = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_command_is_documented() -> None:
    names = list(commands(build_parser()))
    assert "medsegai segment" in names
    missing = undocumented(iter(names), "\n".join(documents().values()))
    assert not missing, f"not in README.md or docs/: {missing}"


def missing_rows(names: Iterator[str], page: str) -> list[str]:
    """Commands without a row in the table at the top, also not that of the command that they belong to."""
    rows = set(re.findall(r"^\| \[`(medsegai [\w ]+)`\]", page, re.MULTILINE))
    return [name for name in names if not {name, name.rpartition(" ")[0]} & rows]


def test_the_table_of_commands_has_them_all() -> None:
    page = (REPOSITORY / "docs" / "command-line.md").read_text()
    assert not missing_rows(commands(build_parser()), page)
    assert missing_rows(iter(["medsegai models new"]), page) == ["medsegai models new"]


MARKS = ("<" * 7 + " ", ">" * 7 + " ")
"""What git leaves where two changes of one place meet."""


def test_no_conflict_of_git_is_left() -> None:
    names = subprocess.run(
        ["git", "grep", "-lE", f"^({'|'.join(MARKS)})"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if names.returncode > 1:
        pytest.skip("this is not a git repository")
    assert names.stdout.split() == []


def test_an_undocumented_command_is_found() -> None:
    parser = argparse.ArgumentParser()
    models = parser.add_subparsers().add_parser("models").add_subparsers()
    models.add_parser("list")
    models.add_parser("show")
    text = "`medsegai models list` and medsegai models showing"
    assert undocumented(commands(parser), text) == ["medsegai models show"]


def typed(text: str) -> Iterator[str]:
    """The commands of a document that can be typed as they stand: lines of blocks, and whole ones in sentences."""
    for block in re.findall(r"^ *```(?:sh|bash)?\n(.*?)^ *```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("medsegai ") and "[" not in line:
                yield line.strip()
    for words in re.findall(r"`(medsegai [^`\n]+)`", text):
        if " -o " in words and "…" not in words:
            yield words


def refused(command: str, parser: argparse.ArgumentParser) -> str:
    """What the command line says against a command; "" if it takes it."""
    words = [word for word in shlex.split(command, comments=True)[1:] if word != "..."]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            parser.parse_args(words)
        except SystemExit as ending:
            return said.getvalue() if ending.code else ""
    return ""


def test_commands_can_be_typed_as_they_stand() -> None:
    parser = build_parser()
    found = [
        (path.name, command, refused(command, parser))
        for path, text in documents().items()
        for command in typed(text)
    ]
    assert len(found) > 80
    assert [item for item in found if item[2]] == []


def test_a_command_that_cannot_be_typed_is_found() -> None:
    text = (
        "```\nmedsegai segment a.nii -o b.nii --uncertainty\n```\n`medsegai measure a.nii -o b.csv`"
    )
    said = [refused(command, build_parser()) for command in typed(text)]
    assert ["expected one argument" in said[0], "unrecognized arguments" in said[1]] == [True] * 2


MENTIONED = re.compile(
    r"`(?:[\w./-]+ )*?(medsegai [^`\n]+)`|^[^`\n]*?\b(medsegai [a-z][^`\n]*)$", re.MULTILINE
)
"""A command in a sentence, or on a line of its own; also with places to fill in, or behind another program."""


def parser_of(words: list[str], parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser of the innermost command that the words name."""
    for word in words:
        inner = [item for item in parser._actions if isinstance(item, argparse._SubParsersAction)]
        if not inner or word not in inner[0].choices:
            break
        parser = inner[0].choices[word]
    return parser


def unknown_flags(text: str, parser: argparse.ArgumentParser) -> list[str]:
    """Flags of mentioned commands that these commands do not have."""
    found = []
    for mentioned in MENTIONED.findall(text.replace("\\\n", " ")):
        command = next(filter(None, mentioned))
        chosen = parser_of(re.sub(r"\|\w+", "", command).split()[1:], parser)
        flags = re.findall(r"(?<![\w-])--[a-z][\w-]*", command)
        known = chosen._option_string_actions
        found += [f"{command}: {flag}" for flag in flags if flag not in known]
    return found


def test_mentioned_commands_have_their_flags() -> None:
    parser = build_parser()
    found = {path.name: unknown_flags(text, parser) for path, text in documents().items()}
    assert {name: problems for name, problems in found.items() if problems} == {}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Run `medsegai segment SCAN --model …`.", []),
        ("Run `medsegai segment SCAN --modle …`.", ["--modle"]),
        ("```\ntorchrun -m medsegai train quicknat A \\\n  --views x --wide\n```", ["--wide"]),
        ("`medsegai train unet3d|quicknat --from brain`", []),
    ],
)
def test_a_flag_that_does_not_exist_is_found(text: str, wrong: list[str]) -> None:
    found = unknown_flags(text, build_parser())
    assert [item.rpartition(" ")[2] for item in found] == wrong


def test_programs_of_the_documents_exist_and_have_their_flags() -> None:
    found, missing = 0, []
    for path, text in documents().items():
        for script, rest in re.findall(
            r"(Testing/\w+/\w+\.py)([^`\n]*)", text.replace("\\\n", " ")
        ):
            source = REPOSITORY / script
            known = source.read_text() if source.is_file() else ""
            flags = re.findall(r"(?<![\w-])--(?:no-)?([a-z][\w-]*)", rest)
            missing += [
                f"{path.name}: {script} {name}" for name in flags if f'--{name}"' not in known
            ]
            found += 1
    assert found > 30
    assert missing == []


def test_every_exit_code_is_documented() -> None:
    codes = {
        item.exit_code
        for item in vars(errors).values()
        if isinstance(item, type) and issubclass(item, errors.MedSegAIError)
    }
    assert len(codes) > 3
    sections = [
        section
        for text in documents().values()
        for section in re.split(r"^#+ ", text, flags=re.MULTILINE)
        if section.lower().startswith("exit codes")
    ]
    missing = {code for code in codes if not any(re.search(rf"\b{code}\b", s) for s in sections)}
    assert not missing, f'not in a section "Exit codes" of README.md or docs/: {sorted(missing)}'


def test_every_make_target_is_documented() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    assert "demo" in targets
    text = "\n".join(documents().values())
    missing = undocumented((f"make {target}" for target in targets if target != "help"), text)
    assert not missing, f"not in README.md or docs/: {missing}"


def test_documents_are_in_plain_english() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}: {problem}"
        for path, text in documents().items()
        for problem in prose_rules.document_problems(text)
    ]
    assert not found, "\n".join(found)


def test_the_changelog_speaks_of_this_version() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(__version__)}\b", text, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    found = [link for path, text in documents().items() for link in broken_links(path, text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[a](nowhere.md)", True),
        ("[a](here.md#nothing)", True),
        ("![a](nowhere.png)", True),
        ("[a](#nothing)", True),
        ("[a](here.md#a-title-with-code)", False),
        ("# Own\n[a](#own)", False),
        ("[a](https://example.org/nowhere.md)", False),
        ("```\n[a](nowhere.md)\n```", False),
    ],
)
def test_a_broken_link_is_found(text: str, broken: bool, tmp_path: Path) -> None:
    (tmp_path / "here.md").write_text("## A title, with `code`\n")
    page = tmp_path / "page.md"
    page.write_text(text)
    assert bool(broken_links(page, text)) is broken
