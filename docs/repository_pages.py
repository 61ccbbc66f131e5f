"""A hook of mkdocs: the files outside docs/ that pages link to become pages of the site, and links lead there.

So that docs/ can say `../examples/run.yaml`, as a code host wants it, and the site needs no code host.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
IN_NAV = {"README.md": "start.md", "CHANGELOG.md": "changelog.md"}
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".mk": "makefile", ".json": "json"}
_NOT_SEARCHED = "---\nsearch: {exclude: true}\n---\n\n"
_FENCED = re.compile(r"^(`{3,}|~{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that are linked to, and those that they link to."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()] + list(IN_NAV)
    seen = set(waiting)
    for path in waiting:
        if not path.startswith("docs/"):
            own = path in IN_NAV
            inclusion = InclusionLevel.INCLUDED if own else InclusionLevel.NOT_IN_NAV
            content = _page(path) if own else _NOT_SEARCHED + _page(path)
            files.append(File.generated(config, _place(path), content=content, inclusion=inclusion))
        for target in _targets(path):
            if target not in seen and not target.startswith("docs/"):
                seen.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to where their targets are on the site."""
    source = page.file.src_uri
    path = _origin(source)

    def lead(link: re.Match[str]) -> str:
        target = _resolve(path, link["path"])
        return posixpath.relpath(_place(target), posixpath.dirname(source) or ".") + (link["anchor"] or "")

    return "".join(part if fenced else _LINK.sub(lead, part) for part, fenced in _parts(markdown))


def _targets(path: str) -> Iterator[str]:
    """The files of the repository that a page of it links to."""
    if path.endswith(".md") or (ROOT / path).is_dir():
        for part, fenced in _parts(_page(path)):
            yield from () if fenced else (_resolve(path, link["path"]) for link in _LINK.finditer(part))


def _resolve(path: str, link: str) -> str:
    """A link of the file at `path`, from the root of the repository."""
    folder = path if (ROOT / path).is_dir() else posixpath.dirname(path)
    return posixpath.normpath(posixpath.join(folder, link))


def _place(path: str) -> str:
    """Where a file of the repository is on the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else IN_NAV.get(path, f"files/{path}.md")


def _origin(place: str) -> str:
    """The file of the repository that is at a place on the site."""
    for path, there in IN_NAV.items():
        if there == place:
            return path
    return place.removeprefix("files/").removesuffix(".md") if place.startswith("files/") else f"docs/{place}"


def _page(path: str) -> str:
    """A file as a page: Markdown as it is, a folder as a list, a notebook by its cells, other text as code."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(below.name for below in file.iterdir() if below.is_file() and not below.name.startswith("."))
        return f"# `{path}/`\n\n" + "".join(f"- [{name}]({name})\n" for name in names)
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    body = _cells(text) if file.suffix == ".ipynb" else _fenced(text, _LANGUAGES.get(file.suffix, "text"))
    return f"# `{path}`\n\n{body}"


def _cells(notebook: str) -> str:
    parts = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        parts.append(_fenced(text, "python") if cell["cell_type"] == "code" else re.sub("^#", "##", text))
    return "\n\n".join(parts)


def _fenced(text: str, language: str) -> str:
    return f"~~~~~~{language}\n{text.rstrip()}\n~~~~~~\n"


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """(text, whether it is a fenced block), in order."""
    end = 0
    for block in _FENCED.finditer(markdown):
        yield markdown[end : block.start()], False
        yield block[0], True
        end = block.end()
    yield markdown[end:], False
