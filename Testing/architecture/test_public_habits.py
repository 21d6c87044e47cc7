"""The files that a public project has are valid, and name what exists."""

import argparse
import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import parsed
from medsegai import __version__
from medsegai.cli import build_parser

REPOSITORY = Path(__file__).resolve().parents[2]
HABITS = (
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CODE_OF_CONDUCT.md",
    "CITATION.cff",
    "Resources/MedSegAI.json",
    "docs/releasing.md",
    ".pre-commit-config.yaml",
    ".github/pull_request_template.md",
    ".github/ISSUE_TEMPLATE/bug_report.yml",
    ".github/ISSUE_TEMPLATE/feature_request.yml",
    ".github/workflows/ci.yml",
)
# The keys of version 1.2.0 of the Citation File Format; an entity is an author that is not one person.
CITATION_REQUIRED = {"authors", "cff-version", "message", "title"}
CITATION_ALLOWED = CITATION_REQUIRED | {
    *(
        "abstract",
        "commit",
        "contact",
        "date-released",
        "doi",
        "identifiers",
        "keywords",
        "license",
    ),
    *("license-url", "preferred-citation", "references", "repository", "repository-artifact"),
    *("repository-code", "type", "url", "version"),
}
# The keys of Slicer's schema of catalogue entries, version 1.0.1.
ENTRY_REQUIRED = {"$schema", "category", "scm_url"}
ENTRY_ALLOWED = ENTRY_REQUIRED | {
    *("build_dependencies", "build_subdirectory", "enabled", "scm_revision", "scm_type", "tier"),
}


def read(name: str) -> str:
    return (REPOSITORY / name).read_text()


def load(name: str) -> Any:
    return json.loads(read(name)) if name.endswith(".json") else yaml.safe_load(read(name))


def structured() -> list[str]:
    """Every YAML and JSON file for people and services outside the code."""
    patterns = ("*.y*ml", ".*.y*ml", "*.cff", ".github/**/*.y*ml", "Resources/*.json")
    found = {path for pattern in patterns for path in REPOSITORY.glob(pattern)}
    return sorted(path.relative_to(REPOSITORY).as_posix() for path in found)


def pages() -> dict[str, str]:
    """Documents, templates, hooks and workflows by name."""
    found = [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/**/*.md"),
        *REPOSITORY.glob(".github/**/*.*"),
    ]
    return {path.relative_to(REPOSITORY).as_posix(): path.read_text() for path in sorted(found)}


def unknown_targets(text: str, makefile: str) -> list[str]:
    """The make targets that a text names as code and the Makefile does not have."""
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = re.findall(
        r"(?:^ *(?:- run: )?|`)make ([a-z][a-z-]*)(?=[` \n;&]|$)", text, re.MULTILINE
    )
    return [name for name in named if name not in targets]


def unknown_commands(text: str, parser: argparse.ArgumentParser) -> list[str]:
    """The subcommands of `medsegai` that a text names as code and the parser does not have."""
    (known,) = (
        set(item.choices)
        for item in parser._actions
        if isinstance(item, argparse._SubParsersAction)
    )
    named = re.findall(
        r"(?:^ *|`|/bin/|-m )medsegai ([a-z][a-z-]*)(?=[` \n]|$)", text, re.MULTILINE
    )
    return [name for name in named if name not in known]


def missing_paths(text: str) -> Iterator[str]:
    """Files of this repository that a workflow runs and that are not there."""
    for name in re.findall(r"(?<![\w/.])(?:Testing|\.ci|MedSegAI)/[\w./-]+", text):
        if not (REPOSITORY / name).exists():
            yield name


@pytest.mark.parametrize("name", HABITS)
def test_the_file_is_there_and_says_something(name: str) -> None:
    assert len(read(name)) > 200


@pytest.mark.parametrize("name", structured())
def test_yaml_and_json_can_be_read(name: str) -> None:
    assert isinstance(load(name), dict)


def test_the_structured_files_were_found() -> None:
    assert {name for name in HABITS if not name.endswith(".md")} <= set(structured())


def test_the_citation_is_valid_and_of_this_version() -> None:
    citation = load("CITATION.cff")
    assert citation.keys() >= CITATION_REQUIRED
    assert citation.keys() <= CITATION_ALLOWED
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert citation["type"] in {"software", "dataset"}
    assert all(author.get("name") or author.get("family-names") for author in citation["authors"])
    assert all(
        isinstance(citation[key], str) for key in ("title", "message", "abstract", "license")
    )
    assert citation["license"] in read("pyproject.toml")


def test_the_index_entry_agrees_with_the_extension() -> None:
    entry = load("Resources/MedSegAI.json")
    extension = dict(re.findall(r'set\((EXTENSION_\w+) "([^"]*)"\)', read("CMakeLists.txt")))
    assert entry.keys() >= ENTRY_REQUIRED
    assert entry.keys() <= ENTRY_ALLOWED
    assert entry["$schema"].endswith("/slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert entry["category"] == extension["EXTENSION_CATEGORY"]
    assert entry["build_dependencies"] == extension["EXTENSION_DEPENDS"].split()
    assert entry["tier"] in range(1, 6)
    # One address, given in both places or in neither.
    assert entry["scm_url"].removesuffix(".git") == extension["EXTENSION_HOMEPAGE"]


def test_the_hooks_are_the_checks_of_make() -> None:
    (repository,) = load(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local", "hooks come from the project's own environment"
    commands = {tuple(shlex.split(hook["entry"])[:2]) for hook in repository["hooks"]}
    assert {Path(command[0]).name for command in commands} == {"ruff", "mypy"}
    for tool, *rest in commands:
        verb = [word for word in rest if not word.startswith("-")]
        assert " ".join([f"$(BIN)/{Path(tool).name}", *verb]) in read("Makefile")


def test_the_workflow_runs_what_a_developer_runs() -> None:
    workflow = load(".github/workflows/ci.yml")
    jobs = workflow["jobs"]
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert ".ci/run" in steps
    assert list(missing_paths("\n".join(steps))) == []
    versions = {tuple(job["strategy"]["matrix"]["python"]) for job in jobs.values()}
    assert versions == {("3.11", "3.12")}
    assert workflow["permissions"] == {"contents": "read"}
    assert "has not run yet" in read(".github/workflows/ci.yml")


def test_issue_forms_have_what_the_site_asks_for() -> None:
    for path in sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml")):
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys(), path.name
        fields = [item for item in form["body"] if item["type"] != "markdown"]
        assert all(item["attributes"]["label"] for item in fields), path.name
        assert len({item["id"] for item in fields}) == len(fields) > 0, path.name


def test_named_commands_exist() -> None:
    makefile, parser = read("Makefile"), build_parser()
    found = {
        name: [*unknown_targets(text, makefile), *unknown_commands(text, parser)]
        for name, text in pages().items()
    }
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    assert ".github/workflows/ci.yml" in found


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("run `make everything`", ["everything"]),
        ("```\nmake all\n```", ["all"]),
        ("      - run: make every", ["every"]),
        ("`make test-slow` and `make demo INPUT=scan.nii.gz`", []),
        ("We make sure", []),
    ],
)
def test_an_unknown_target_is_found(text: str, wrong: list[str]) -> None:
    assert unknown_targets(text, read("Makefile")) == wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("run `medsegai cure`", ["cure"]),
        ("```\nmedsegai heal x\n```", ["heal"]),
        ("- run: python -m medsegai mend", ["mend"]),
        ("`medsegai models import FOLDER` and medsegai itself", []),
    ],
)
def test_an_unknown_command_is_found(text: str, wrong: list[str]) -> None:
    assert unknown_commands(text, build_parser()) == wrong


def test_a_missing_file_of_the_workflow_is_found() -> None:
    text = "python -m pytest Testing/engine/test_nothing.py Testing/engine/test_volume.py"
    assert list(missing_paths(text)) == ["Testing/engine/test_nothing.py"]


PRIVATE_ENGLISH = re.compile(
    r"(?<![Tt]here )\bis no (?!longer\b|more\b|such\b|one\b)\w+|\bgone on with\b|(?<!\d)1 (?:voxels|images|jobs)\b"
)


def messages(source: str) -> Iterator[str]:
    """The texts of the errors that a file raises; what is filled in stands as {}."""
    for node in parsed.nodes(source):
        if isinstance(node, ast.Raise) and node.exc is not None:
            for text in ast.walk(node.exc):
                if isinstance(text, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "{}"
                        for part in text.values
                    )
                elif isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield text.value


def test_messages_are_in_plain_english() -> None:
    found = [
        f"{path.name}: {text}"
        for path in sorted((REPOSITORY / "MedSegAI").rglob("*.py"))
        for text in messages(path.read_text())
        if PRIVATE_ENGLISH.search(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("raise InputError(f'{path} is no folder.')", True),
        ("raise InputError(_('The batch is gone on with.'))", True),
        ("raise InputError('There is no folder.')", False),
        ("raise InputError(f'{path} is no longer there.')", False),
    ],
)
def test_private_english_is_found(source: str, wrong: bool) -> None:
    assert any(PRIVATE_ENGLISH.search(text) for text in messages(source)) is wrong
