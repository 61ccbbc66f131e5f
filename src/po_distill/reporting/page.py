"""The parts that every page is made of: one file that needs nothing else, no network, no scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files

from po_distill.reporting.foreign_text import for_page


def document(title: str, header: str, sections: Iterable[str], footer: str, styles: Sequence[str] = ()) -> str:
    """A whole page of HTML. The title is escaped here; `styles` are style sheets that come after the common one."""
    style = "".join(_style(name) for name in ("page.css", *styles))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{for_page(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>\n{header}\n</header>\n<main>\n{''.join(sections)}</main>\n"
        f'<footer class="soft"><p>{footer}</p></footer>\n</body>\n</html>\n'
    )


def section(title: str, body: str) -> str:
    """A section under a heading; nothing where there is nothing to say."""
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>\n" if body else ""


def figure(title: str, svg: str) -> str:
    """A plot under its title."""
    return f"<figure><figcaption>{title}</figcaption>{svg}</figure>"


def breakable(text: str) -> str:
    """A name that may break behind an underscore, where a phone has no room for it."""
    return for_page(text).replace("_", "_<wbr>")


def table(header: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], kind: str = "") -> str:
    """A table that scrolls in its own box. Names are escaped here; the cells are HTML already."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{breakable(name)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for name, cells in rows
    )
    opening = f'<table class="{kind}">' if kind else "<table>"
    return (
        f'<div class="scroll" tabindex="0">{opening}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def pairs(given: Iterable[tuple[str, str]]) -> str:
    """Names and what is said of each. Names are escaped here; what is said is HTML already."""
    return "<dl>" + "".join(f"<dt>{breakable(name)}</dt><dd>{told}</dd>" for name, told in given) + "</dl>"


def _style(name: str) -> str:
    return files("po_distill.reporting").joinpath(name).read_text(encoding="utf-8")
