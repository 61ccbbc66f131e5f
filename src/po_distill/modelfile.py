"""The text of a Modelfile, in which no value can become a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from po_distill.errors import InputError


def modelfile(
    gguf_name: str,
    template: str,
    stops: Sequence[str],
    parameters: Mapping[str, int | float],
    license: str | None,
    *,
    system: str = "",
) -> str:
    """The text of a Modelfile. Raises InputError where a value cannot be written as it stands."""
    lines = [f"FROM ./{gguf_name}", f"TEMPLATE {_quoted('TEMPLATE', template)}"]
    lines += [f"SYSTEM {_quoted('SYSTEM', system)}"] if system else []
    lines += [f"PARAMETER {key} {value}" for key, value in parameters.items()]
    lines += [f"PARAMETER stop {_quoted('stop', stop)}" for stop in stops]
    lines += [f"LICENSE {_quoted('LICENSE', license)}"] if license else []
    return "\n".join(lines) + "\n"


def unwritten_modelfile(why: str, command: str) -> str:
    """What stands in the place of a Modelfile that cannot be written. Ollama refuses it, as it has no FROM."""
    return f"# {why}\n# Ollama's API carries it as it is; this makes the model:\n#   {command}\n"


def _quoted(what: str, value: str) -> str:
    """A value in the Modelfile's quotes, of which there are two kinds and no escapes (Ollama, parser/parser.go)."""
    if odd := next((sign for sign in value if not sign.isprintable() and sign not in "\n\t"), None):
        raise InputError(
            f"The Modelfile's {what} holds the character U+{ord(odd):04X}, which Ollama drops.", "Take it out."
        )
    if '"' not in value and "\n" not in value:
        return f'"{value}"'
    if '"""' in value or value.startswith('"') or value.endswith('"'):
        raise InputError(
            f"The Modelfile's {what} holds quotes that would end it early: {value[:60]!r}.",
            "Take them out; Modelfiles know no escapes.",
        )
    return f'"""{value}"""'
