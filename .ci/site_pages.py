"""What the site needs beyond the pages of `docs/`; MkDocs calls these functions (`hooks` in mkdocs.yml).

The changelog and the page for contributors lie at the root of the repository, where people look for them.
They become pages of the site. A link to any other file outside `docs/` becomes its path, because the site
does not hold that file.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from medsegai.request import request_options

ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
OPTIONS_MARKER = "<!-- the options of a request -->"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie at the root of the repository."""
    root = Path(config["config_file_path"]).parent
    for name, page in ROOT_PAGES.items():
        if (root / name).exists():
            content = as_in_docs((root / name).read_text())
            files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace the links of a page that lead out of `docs/`, and fill in the options of a request."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")
    text = LINK.sub(lambda link: _on_site(link, folder), markdown)
    return text.replace(OPTIONS_MARKER, options_table()) if OPTIONS_MARKER in text else text


def as_in_docs(text: str) -> str:
    """A page of the root with its links as they would be if it lay in `docs/`."""

    def moved(link: re.Match[str]) -> str:
        target = link["target"]
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        inside = target.removeprefix("docs/")
        return f"[{link['text']}]({inside if inside != target else f'../{target}'})"

    return LINK.sub(moved, text)


def options_table() -> str:
    """The fields of `SegmentationRequest`, read from the same place as by the command line and the panel."""
    rows = ["| field | default | meaning |", "| --- | --- | --- |"]
    for item in request_options():
        choices = item.metadata["choices"]
        among = f"; one of {', '.join(f'`{choice}`' for choice in choices)}" if choices else ""
        rows.append(f"| `{item.name}` | `{item.default!r}` | {item.metadata['help']}{among} |")
    return "\n".join(rows)


def _on_site(link: re.Match[str], folder: str) -> str:
    """A link of a page in `folder` as the site needs it."""
    text, target = link["text"], link["target"]
    path, _, heading = target.partition("#")
    path = posixpath.normpath(f"{folder}/{path}")
    if not target.startswith("../") or path.startswith("docs/"):
        return link[0]
    if path in ROOT_PAGES:
        page = posixpath.relpath(f"docs/{ROOT_PAGES[path]}", folder)
        return f"[{text}]({page}{'#' + heading if heading else ''})"
    return text if path in text else f"{text} (`{path}`)"
