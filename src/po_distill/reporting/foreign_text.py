"""Text of other people (labels, paths, values of their files), made harmless where it is shown.

What cannot be printed (control characters, half characters, marks that turn the direction of reading) is shown
as a question mark: nothing that was there looks as though it were not.
"""

from __future__ import annotations

import html
import re

_LONGEST = 160  # characters; a page of one value tells no more than its beginning


def one_line(text: str, longest: int | None = _LONGEST, unprintable: str = "\ufffd") -> str:
    """The text on one line, cut to `longest` characters (None does not cut)."""
    line = "".join(c if c.isprintable() else " " if c.isspace() else unprintable for c in text).strip()
    return line if longest is None or len(line) <= longest else line[: longest - 1] + "…"


def for_terminal(text: str, longest: int | None = _LONGEST) -> str:
    """The text on one line, without escape sequences."""
    return one_line(text, longest, unprintable="?")


def for_page(text: str, longest: int | None = _LONGEST) -> str:
    """The text on one line of HTML, as the content of an element or in a quoted attribute."""
    return html.escape(one_line(text, longest))


def for_markdown(text: str, longest: int | None = _LONGEST) -> str:
    """The text on one line that Markdown shows as it is, in a table too."""
    line = one_line(text, longest).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|~#$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", line)
    # GitHub makes links of these by themselves.
    return line.replace("://", ":&#47;/").replace("www.", "www&#46;").replace("@", "&#64;")


def fenced(text: str, language: str = "") -> str:
    """Lines of text as a Markdown code block that nothing in them can end."""
    lines = ["".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line) for line in text.splitlines()]
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence + language, *lines, fence])
