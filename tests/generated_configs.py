"""Config files as people write them, drawn by hypothesis: every style at once, and what of it is a role's own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

ROLE = "product_owner"
WORDS = (
    "vertex_sdk",
    "gemini-2.5-pro",
    "house",
    "é",
    "日本語",
    "two words",
    "100",
    "no",
    "a: b",
    "x # y",
    "it's",
    '"q"',
)
PLAIN = frozenset(WORDS[:6])


@dataclass
class GeneratedConfig:
    """A config's text. Lines that are the role's own may change, all others may not."""

    text: str
    other_lines: list[str]  # without line ends, in their order
    comments: list[str]
    may_be_refused: bool = False


@dataclass
class _Writer:
    draw: Any
    step: int
    lines: list[tuple[str, bool]] = field(default_factory=list)  # the line, whether it is the role's
    comments: list[str] = field(default_factory=list)
    ends_in_text: bool = False
    anchored: bool = False  # whether the anchor &defaults stands above

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def some_of(self, *names: str) -> list[str]:
        """Most of the names, in any order."""
        return [name for name in self.draw(st.permutations(names)) if self.pick(True, True, True, False)]

    def comment(self) -> str:
        said = f"# note {len(self.comments)} {self.pick('é', 'x: y', 'roles: {', '', chr(0xA0) + '“q”')}".rstrip(" ")
        self.comments.append(said)
        return said

    def add(self, line: str, own: bool, *, commented: bool = True) -> None:
        behind = self.pick("", "", " ", "  ") if commented else ""
        if behind.strip(" ") == "" and commented and self.pick(True, False, False):
            behind = f" {behind}{self.comment()}"
        self.lines.append((line + behind, own))
        self.ends_in_text = False

    def between(self, deepest: int) -> None:
        """Empty lines and comments, of which nobody's edit may touch any."""
        for _ in range(self.draw(st.integers(0, 2))):
            kind = self.pick("empty", "blank", "comment")
            indent = " " * self.draw(st.integers(0, deepest))
            self.lines.append((indent + self.comment() if kind == "comment" else "  " * (kind == "blank"), False))

    def key(self, name: str) -> str:
        return self.pick(name, name, f"'{name}'", f'"{name}"')

    def word(self) -> str:
        word = self.pick(*WORDS)
        quoted = [json.dumps(word, ensure_ascii=False), "'" + word.replace("'", "''") + "'"]
        return self.pick(*([word] if word in PLAIN else []), *quoted)

    def values(self) -> dict[str, str]:
        """What a role's section may say, each value as it is written."""
        choices = {
            "provider": (self.word(), self.word(), "~", ""),
            "model": (self.word(), self.word(), "null", "", "12", "2024-01-02"),
            "temperature": ("0.7", ".5", "0.4", "1", "'0.4'"),
            "max_tokens": ("4096", "8_192", "0x10", "1e3"),
            "top_p": ("0.9", "[1, {a: b}]", ".inf"),
            "stops": ("[\"</s>\", 'x']", "[]"),
        }
        names = self.draw(st.lists(st.sampled_from(sorted(choices)), unique=True, max_size=6))
        return {name: self.pick(*choices[name]) for name in names}

    # --- sections -------------------------------------------------------------------------------

    def role(self, name: str, indent: int, *, own: bool) -> None:
        styles = ["block", "block", "flow", "braces", "null", "tilde"]
        styles += ["alias", "merge"] if self.anchored else []
        style, pad = self.pick(*styles), " " * indent
        if style == "block" or style == "merge":
            self.block_role(name, indent, own=own, merge=style == "merge")
        elif style == "flow":
            self.add(f"{pad}{self.key(name)}: {self.braces(self.values())}", own)
        else:
            written = {"braces": "{}", "null": "", "tilde": "~", "alias": "*defaults"}[style]
            self.add(f"{pad}{self.key(name)}: {written}".rstrip(), own)

    def block_role(self, name: str, indent: int, *, own: bool, merge: bool) -> None:
        inner = indent + self.step
        values = self.values()
        if not values and not merge:
            values = {"provider": "a"}
        self.add(f"{' ' * indent}{self.key(name)}:", own)
        if merge:
            self.add(f"{' ' * inner}<<: *defaults", own)
        for key, value in values.items():
            self.between(inner)
            self.add(f"{' ' * inner}{self.key(key)}: {value}".rstrip(), own)
        kind = self.pick("", "", "|", "|-", ">", "|+", "nested")
        if kind == "nested":
            self.add(f"{' ' * inner}options:", own)
            self.add(f"{' ' * (inner + self.step)}seed: 7", own)
        elif kind:
            self.add(f"{' ' * inner}prompt: {kind}", own, commented=False)
            for said in ("You are # no comment", "a: b"):
                self.add(f"{' ' * (inner + 2)}{said}", own, commented=False)
            self.ends_in_text = kind != "|-"

    def braces(self, values: dict[str, str]) -> str:
        pad = self.pick("", " ")
        inside = ", ".join(f"{self.key(key)}: {value}" for key, value in values.items())
        return "{" + pad + inside + pad + "}"

    def section(self, name: str) -> None:
        if name == "defaults":
            self.add(f"defaults: &defaults {self.braces({'provider': 'house', 'prompt': self.word()})}", False)
            self.anchored = True
        elif name == "logging":
            self.add(f"{self.key('logging')}: {self.pick('info', '{level: info}', '[a, b]', '~', '2024-01-01')}", False)
        elif name == "providers":
            self.add(f"{self.key('providers')}:", False)
            for inner in self.draw(st.lists(st.sampled_from(["house", "ollama", "é"]), unique=True, max_size=3)):
                self.between(self.step)
                text = self.pick("{type: x, base_url: 'http://h'}", "{}", "{type: x}")
                self.add(f"{' ' * self.step}{self.key(inner)}: {text}", False)
        else:
            self.roles()

    def roles(self) -> None:
        names = self.some_of(ROLE, "architect", "Tester é")
        if self.pick(True, False, False):
            inside = {name: self.braces(self.values()) for name in names}
            self.add(f"{self.key('roles')}: {self.braces(inside)}", True)
            return
        self.add(f"{self.key('roles')}:", False)
        for name in names:
            self.between(self.step)
            self.role(name, self.step, own=name == ROLE)


@st.composite
def generated_configs(draw: Any) -> GeneratedConfig:
    """Comments, anchors, brackets, quotes, any line ends, a byte order mark, Unicode; sections that may be missing."""
    writer = _Writer(draw, draw(st.integers(1, 4)))
    writer.between(6)
    if draw(st.booleans()):
        writer.add("---", False)
    for name in writer.some_of("defaults", "providers", "roles", "logging"):
        writer.between(3)
        writer.section(name)
    refused = writer.ends_in_text
    writer.between(3)
    ends = draw(st.sampled_from([["\n"], ["\r\n"], ["\r"], ["\n", "\r\n"], ["\n", "\r\n", "\r"]]))
    text = ""
    for line, _ in writer.lines:
        end = draw(st.sampled_from(ends))
        text += line + ("\r" if not line and text.endswith("\r") else end)  # else \r and \n would end one line
    if draw(st.booleans()):
        text = text[: len(text) - (2 if text.endswith("\r\n") else 1)] if text else text
    mark = draw(st.sampled_from(["", "", "\ufeff"]))
    return GeneratedConfig(
        text=mark + text,
        other_lines=[line for line, own in writer.lines if not own],
        comments=writer.comments,
        may_be_refused=refused and not text.endswith(("\n", "\r")),
    )
