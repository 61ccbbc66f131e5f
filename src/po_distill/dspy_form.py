"""DSPy's chat form: prompts as its ChatAdapter writes them, and the answers that it reads.

Prompts are written by the DSPy that is installed, so that a student is trained on what a program will ask it. Reading
needs no DSPy.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from po_distill.errors import MissingExtraError
from po_distill.records import Message

CONTRACT = "dspy"
"""The name of a role's contract in this form."""

Fields = Mapping[str, str]
Demonstration = tuple[Fields, Fields]
"""The inputs and the outputs of an answer that is shown in a prompt."""

_HEADER = re.compile(r"\[\[ ## (\w+) ## \]\]")
_REQUIREMENTS = "Respond with the corresponding output fields"
_OBJECTIVE = "In adhering to this structure, your objective is: "


def require_dspy(purpose: str) -> None:
    """Raise MissingExtraError unless DSPy is installed."""
    try:
        import dspy  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("dspy", CONTRACT, purpose) from error


# --- writing ------------------------------------------------------------------------------------


@lru_cache(maxsize=64)  # DSPy takes milliseconds, and it is the same for every row
def system_text(signature: Any) -> str:
    """The system message of a signature."""
    return str(_adapter().format_system_message(signature))


def user_text(signature: Any, inputs: Fields) -> str:
    """The user message that asks about inputs."""
    return str(_adapter().format_user_message_content(signature, dict(inputs), main_request=True))


def chat(signature: Any, inputs: Fields, demonstrations: Sequence[Demonstration] = ()) -> tuple[Message, ...]:
    """The prompt about inputs: the system message, a turn of each speaker per demonstration, the question."""
    demos = [{**shown, **answered} for shown, answered in demonstrations]
    return (
        Message(speaker="system", content=system_text(signature)),
        *(Message.model_validate(turn) for turn in _adapter().format_demos(signature, demos)),
        Message(speaker="user", content=user_text(signature, inputs)),
    )


def answer_text(signature: Any, outputs: Fields) -> str:
    """The answer with these outputs."""
    return str(_adapter().format_assistant_message_content(signature, dict(outputs)))


def write_fields(fields: Fields) -> str:
    """The answer with these fields in their order, whatever the signature: their values are texts already."""
    sections = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()).strip()
    return f"{sections}\n\n[[ ## completed ## ]]\n"


def _adapter() -> Any:
    try:
        from dspy.adapters import ChatAdapter
    except ImportError as error:
        raise MissingExtraError("dspy", CONTRACT, "DSPy's chat form") from error
    return ChatAdapter()


# --- reading ------------------------------------------------------------------------------------


def read_fields(text: str) -> dict[str, str]:
    """The fields of a message by name, as ChatAdapter reads them: a header begins a line, and the first one counts."""
    if "[[ ##" not in text:
        return {}
    fields: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        header = _HEADER.match(line.strip())
        if header is None:
            lines.append(line)
            continue
        lines = [rest] if (rest := line[header.end() :].strip()) else []
        fields.setdefault(header[1], lines)
    return {name: "\n".join(found).strip() for name, found in fields.items()}


def read_question(text: str) -> dict[str, str]:
    """The inputs of a user message, without what DSPy says behind them of the answer's form."""
    question, found, _ = text.rpartition(f"\n\n{_REQUIREMENTS}")
    return read_fields(question if found else text)


def asked_outputs(text: str) -> tuple[str, ...]:
    """The names of the fields that a user message asks for, in order; none where it does not say."""
    _, found, wanted = text.rpartition(_REQUIREMENTS)
    return tuple(name for name in _HEADER.findall(wanted) if name != "completed") if found else ()


def read_instructions(system: str) -> str:
    """The instructions within a system message; a text that is none is taken for instructions itself."""
    before, found, objective = system.partition(_OBJECTIVE)
    return textwrap.dedent(objective).strip() if found and _HEADER.search(before) else system.strip()
