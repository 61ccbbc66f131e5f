"""How Ollama makes a prompt of messages with a TEMPLATE (its template/template.go and server/prompt.go)."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fakes.go_template import Struct, Template
from fakes.go_template_functions import Function, to_json
from fakes.go_template_nodes import Action, Branch, Command, Field, Node, Pipe, Variable

DEFAULT_TEMPLATE = "{{ .Prompt }}"
_FUNCTIONS = {"json": Function(to_json, 1, 1)}


@dataclass(frozen=True)
class Turn:
    """A message of a chat, as a template sees it."""

    role: str
    content: str
    thinking: str = ""

    def struct(self) -> Struct:
        fields = {"Role": self.role, "Content": self.content, "Thinking": self.thinking, "Images": [],
                  "ToolCalls": [], "ToolName": "", "ToolCallID": ""}  # fmt: skip
        return Struct("*api.Message", fields)


class PromptTemplate:
    """A TEMPLATE. Raises TemplateError where Ollama refuses it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._template = Template(text, _FUNCTIONS)
        if not {"messages", "response"} & set(self.names()):
            field = Field(len(text), 1, ("Response",))
            answer = Action(field.at, 1, Pipe(field.at, 1, [], False, [Command(field.at, 1, [field])]))
            self._template.root.append(answer)

    def names(self) -> list[str]:
        """Every field and variable that it names, in small letters, sorted."""
        return sorted({name.lower() for node in self._template.root for name in _names(node)})

    def render(self, turns: Sequence[Turn], *, prompt: str = "", suffix: str = "") -> str:
        """The prompt for a conversation; with a suffix, for the gap between `prompt` and it. Raises TemplateError."""
        thinking = {"Think": False, "IsThinkSet": False}
        if prompt and suffix:
            return self._template.render({"Prompt": prompt, "Suffix": suffix, "Response": "", **thinking})
        system, collated = collate(turns)
        if {"messages", "document"} & set(self.names()):
            values = {"System": system, "Messages": [turn.struct() for turn in collated], "Tools": None,
                      "Response": "", "Query": "", "Document": "", "Instruction": "", **thinking}  # fmt: skip
            return self._template.render(values)
        return self._render_in_turn(collated, thinking)

    def _render_in_turn(self, turns: Sequence[Turn], thinking: dict[str, Any]) -> str:
        """The prompt of a template without `.Messages`: it is rendered once per exchange."""
        out: list[str] = []
        values = {"System": "", "Prompt": "", "Response": ""}

        def flush(template: Template) -> None:
            out.append(template.render({**values, **thinking}))
            values.update(System="", Prompt="", Response="")

        for turn in turns:
            if turn.role == "system":
                if values["Prompt"] or values["Response"]:
                    flush(self._template)
                values["System"] = turn.content
            elif turn.role == "user":
                if values["Response"]:
                    flush(self._template)
                values["Prompt"] = turn.content
            elif turn.role == "assistant":
                values["Response"] = turn.content
        flush(self._template.with_root(_cut_after_response(self._template.root)))
        return "".join(out)


def collate(turns: Sequence[Turn]) -> tuple[str, list[Turn]]:
    """(all system texts, the turns with neighbours of one speaker made one)."""
    collated: list[Turn] = []
    for turn in turns:
        if collated and collated[-1].role == turn.role != "tool":
            collated[-1] = replace(collated[-1], content=f"{collated[-1].content}\n\n{turn.content}")
        else:
            collated.append(turn)
    return "\n\n".join(turn.content for turn in turns if turn.role == "system"), collated


async def fit(
    turns: Sequence[Turn],
    render: Callable[[Sequence[Turn]], Awaitable[str]],
    count: Callable[[str], Awaitable[int]],
    num_ctx: int,
) -> str:
    """The prompt of as many turns, counted from the last, as fit the context; system turns stay, and the last turn."""
    prompt = ""
    for first in range(len(turns)):
        system = [turn for turn in turns[:first] if turn.role == "system"]
        prompt = await render([*system, *turns[first:]])
        if await count(prompt) <= num_ctx:
            break
    return prompt


def _names(node: Node | None) -> list[str]:
    if isinstance(node, Action):
        return _names(node.pipe)
    if isinstance(node, Branch):
        inner = [*node.body, *(node.otherwise or [])]
        return [*_names(node.pipe), *(name for one in inner for name in _names(one))]
    if isinstance(node, Pipe):
        return [name for command in node.commands for one in command.arguments for name in _names(one)]
    return list(node.names) if isinstance(node, Field | Variable) else []


def _cut_after_response(nodes: list[Node]) -> list[Node]:
    """The tree up to the first `.Response`: where the model goes on, the template has no more to say."""
    cut = False

    def kept(nodes: list[Node]) -> list[Node]:
        return [node for node in map(walk, nodes) if node is not None]

    def walk(node: Node) -> Node | None:
        nonlocal cut
        if cut:
            return None
        if isinstance(node, Field) and "Response" in node.names:
            cut = True
        elif isinstance(node, Branch):
            node.body = kept(node.body)
            node.otherwise = None if node.otherwise is None else kept(node.otherwise)
        elif isinstance(node, Action):
            node.pipe.commands = [one for one in map(command, node.pipe.commands) if one is not None]
            return node if node.pipe.commands else None
        return node

    def command(one: Command) -> Command | None:
        one.arguments = kept(one.arguments)
        return one if one.arguments else None

    return kept(copy.deepcopy(nodes))
