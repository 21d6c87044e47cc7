"""The documentation builds as a site, without warnings and without torch, and shows what GitHub shows."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted((REPOSITORY / "docs").rglob("*.md"))
# Builds a site and fails where the pages of the API imported what they describe.
BUILD = """
import sys
from mkdocs.__main__ import cli
try:
    cli(["build", "--strict", "--config-file", sys.argv[1], "--site-dir", sys.argv[2]])
finally:
    assert "torch" not in sys.modules
"""


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BUILD, config, site],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(REPOSITORY / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


def site_name(page: Path) -> str:
    """The folder of a page on the site; "" for the first page."""
    name = page.relative_to(REPOSITORY / "docs").with_suffix("").as_posix()
    return re.sub(r"(^|/)index$", "", name)


def visible(folder: Path, name: str) -> str:
    """The text of a page of the site, without code and without what surrounds the page."""
    page = (folder / name / "index.html").read_text()
    (article,) = re.findall(r"<article.*?</article>", page, re.DOTALL)
    return re.sub(r"<pre.*?</pre>|<code.*?</code>|<[^>]+>", "", article, flags=re.DOTALL)


def test_every_page_is_on_the_site(site: Path) -> None:
    built = {path.parent.relative_to(site).as_posix() for path in site.rglob("index.html")}
    wanted = {site_name(path) or "." for path in PAGES}
    assert wanted | {"changelog", "contributing"} == built


def test_the_api_pages_hold_what_they_name(site: Path) -> None:
    for page in (REPOSITORY / "docs" / "api").glob("*.md"):
        built = (site / "api" / page.stem.replace("index", "") / "index.html").read_text()
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE):
            assert re.search(rf'id="{re.escape(name)}[."]', built), name
    segmentation = visible(site, "api/segmentation")
    assert "Monte-Carlo dropout passes per member" in segmentation


def test_lists_and_tables_are_what_they_look_like(site: Path) -> None:
    """MkDocs wants an empty line before a list or a table, and four spaces before a list in a list."""
    for path in PAGES:
        name = site_name(path)
        stray = re.findall(r"^ *(?:[-*] .*|\| .*\|)$", visible(site, name), re.MULTILINE)
        assert not stray, f"{path.name}: {stray}"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = re.findall(
        r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]+"',
        (site / "index.html").read_text(),
    )
    assert not loaded


def bad_site(folder: Path, text: str) -> Path:
    """A site of two pages in our configuration, with `text` in the second."""
    settings: dict[str, Any] = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    settings["nav"] = [{"Home": "index.md"}]
    settings["hooks"] = [str(REPOSITORY / hook) for hook in settings["hooks"]]
    python = settings["plugins"][-1]["mkdocstrings"]["handlers"]["python"]
    python["paths"] = [str(REPOSITORY / "MedSegAI")]
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(f"# Title\n\n{text}\n")
    config = folder / "mkdocs.yml"
    config.write_text(yaml.safe_dump(settings))
    return config


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](nowhere.md) [b](#nothing)", ("nowhere.md", "#nothing")),
        ("::: medsegai.errors.NothingError", ("NothingError",)),
    ],
)
def test_what_leads_nowhere_ends_the_build(
    text: str, found: tuple[str, ...], tmp_path: Path
) -> None:
    done = build(bad_site(tmp_path, text), tmp_path / "site")
    assert done.returncode != 0
    assert [name for name in found if name not in done.stderr] == []


def test_a_page_that_the_navigation_lacks_ends_the_build(tmp_path: Path) -> None:
    config = bad_site(tmp_path, "Text")
    assert build(config, tmp_path / "site").returncode == 0
    (tmp_path / "docs" / "lost.md").write_text("# Lost\n")
    done = build(config, tmp_path / "site")
    assert done.returncode != 0
    assert "lost.md" in done.stderr
