"""Write docs/cli.md and docs/settings.md out of the code, so that they cannot drift from it.

`python docs/make_reference.py` writes both pages; with `--check` it writes nothing, and exits with 1
and the names of the pages that are not up to date.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from po_distill.cli import cli
from po_distill.settings import Settings, quickstart_settings

FOLDER = Path(__file__).parent
MADE = "<!-- Made by docs/make_reference.py: edit the code, then run it again. -->\n"
WIDTH = 100

# What settings.py says by a name alone. A setting with neither a comment there nor a line here is an error.
MEANINGS = {
    "role": "the role to distil; `po-distill plugins` lists them",
    "concepts": "which concepts are answered",
    "concepts.path": "JSONL of concepts; a file of your own is used as it is",
    "concepts.seed": "equal seeds make equal concepts",
    "teacher.provider": "who answers: a plugin, or `module:Class`",
    "teacher.model": "the model to ask; null for the provider's own default (for `replay`, a file)",
    "teacher.base_url": "address of the provider, where it has one",
    "teacher.options": "settings of the provider's own",
    "teacher.min_score": "least metric of a row; an answer under it is asked for again",
    "teacher.thinking": "how much a thinking model may think: a budget in tokens or a level; null is its own",
    "teacher.temperature": "of the sampling; 0 decodes greedily",
    "teacher.requests_per_minute": "a limit of yours; null is none",
    "teacher.tokens_per_minute": "a limit of yours, prompts and answers together; null is none",
    "dataset.path": "JSONL of the training rows; the other files of the dataset lie beside it",
    "dataset.validation_share": "share of the concepts held out for validation",
    "dataset.test_share": "share of the concepts held out for the evaluation",
    "train.base": "base model: a registered name, a folder or a hub id",
    "train.epochs": "passes over the training rows",
    "train.batch": "examples per optimizer step",
    "train.lr": "peak learning rate",
    "train.max_seq_len": "tokens of prompt and target together; a longer row is an error that names it",
    "train.max_samples": "train on only so many rows",
    "train.max_steps": "stop after so many optimizer steps",
    "train.minutes": "plan the number of steps, from a measured step, to fit this time",
    "train.seed": "order of the rows and start of the adapter",
    "train.launcher": "where the training run runs",
    "train.lora.rank": "rank of the update",
    "train.lora.dropout": "dropout in front of the adapter's matrices, while training",
    "train.lora.target_modules": "the linear layers that get an adapter",
    "package.name": "name of the Ollama model; null takes the version's, as `po-student-v1`",
    "package.quantization": "storage of the weights in the GGUF",
    "evaluate.max_tokens": "longest answer, in tokens",
    "evaluate.report": "the Markdown report; `.html` and `.json` lie beside it",
    "logs": "where journals and logs go",
}


# --- docs/cli.md --------------------------------------------------------------------------------


def cli_page() -> str:
    """The help text of every command."""
    parts = [
        MADE,
        "# Command line\n",
        "What `po-distill COMMAND --help` prints, command by command, in the order of the road.\n",
        "Exit codes: 0 done; 1 a problem, told with its fix on standard error; 2 wrong usage; 3 the work is done and "
        "its verdict is no (`evaluate --gate`, a budget that is reached, a journal that is not sound); 4 the cases do "
        "not decide the verdict (`evaluate --gate`); 130 interrupted, with what was finished kept. `--debug` may stand "
        "anywhere on the line.\n",
        "Progress goes to standard error, results to standard output. `--json` prints one JSON object and nothing "
        "else.\n",
        "## po-distill\n",
        _fenced(help_of(cli, "po-distill")),
    ]
    for name in cli.list_commands(click.Context(cli)):
        command = cli.commands[name]
        parts += [f"## po-distill {name}\n", _fenced(help_of(command, f"po-distill {name}"))]
        for inner, below in getattr(command, "commands", {}).items():
            parts += [f"### po-distill {name} {inner}\n", _fenced(help_of(below, f"po-distill {name} {inner}"))]
    return "\n".join(parts)


def help_of(command: click.Command, name: str) -> str:
    """The help text as a terminal of WIDTH columns shows it."""
    settings = {**command.context_settings, "terminal_width": WIDTH, "help_option_names": ["-h", "--help"]}
    with command.make_context(name, [], resilient_parsing=True, **settings) as context:
        return command.get_help(context)


def _fenced(text: str) -> str:
    return "```text\n" + "\n".join(line.rstrip() for line in text.splitlines()) + "\n```\n"


# --- docs/settings.md ---------------------------------------------------------------------------


def settings_page() -> str:
    """Every setting of settings.py, with its default and what it means."""
    parts = [
        MADE,
        "# Settings\n",
        "What the YAML file of `po-distill run` may hold, and what `po_distill.Settings` takes. Every setting has a "
        "default, so an empty file is a valid one; an unknown key is an error that names the nearest known one. Paths "
        "are relative to the folder that the command runs in. A file to begin with: "
        "[examples/run.yaml](../examples/run.yaml).\n",
        "## At the top\n",
        _table(Settings(), ""),
    ]
    for name, value in Settings():
        if isinstance(value, BaseModel):
            parts += [f"## {name}\n", f"{inspect.getdoc(type(value))}\n", _table(value, f"{name}.")]
    parts += [
        "## What quickstart sets\n",
        "`po-distill quickstart` is `po-distill run` with these settings, and the defaults for all others.\n",
        "| setting | quickstart | default |\n| --- | --- | --- |\n" + "".join(_quickstart_rows()),
    ]
    return "\n".join(parts)


def _table(section: BaseModel, prefix: str) -> str:
    rows = "".join(
        f"| `{prefix}{name}` | {_kind(type(section), name)} | {_value(value)} | {meaning} |\n"
        for name, value, meaning in _settings(section, prefix)
    )
    return "| setting | what it takes | default | meaning |\n| --- | --- | --- | --- |\n" + rows


def _settings(section: BaseModel, prefix: str) -> Iterator[tuple[str, Any, str]]:
    """(name below the section, default, meaning) of each setting, those of nested sections too."""
    comments = comments_of(type(section))
    for name, value in section:
        if isinstance(value, BaseModel):
            if prefix:
                yield from ((f"{name}.{inner}", v, m) for inner, v, m in _settings(value, f"{prefix}{name}."))
            continue
        meaning = comments.get(name) or MEANINGS.get(f"{prefix}{name}")
        if meaning is None:
            raise SystemExit(f"{prefix}{name} has no meaning: comment it in settings.py, or add it to MEANINGS.")
        yield name, value, re.sub(r"\bNone\b", "null", meaning).replace("|", "\\|")


def comments_of(section: type[BaseModel]) -> dict[str, str]:
    """field -> the comment behind it in the source."""
    found = re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(section), re.MULTILINE)
    return dict(found)


def _kind(section: type[BaseModel], name: str) -> str:
    """What a setting takes, in words, by the JSON schema that pydantic gives."""
    *path, last = name.split(".")
    for part in path:
        section = section.model_fields[part].annotation  # type: ignore[assignment]
    return _in_words(section.model_json_schema()["properties"][last])


def _in_words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_in_words(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    words = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "mapping"}
    kind = {**words, "array": "list", "null": "null"}.get(schema["type"], schema["type"])
    bounds = {"exclusiveMinimum": "> {:g}", "minimum": ">= {:g}", "maximum": "<= {:g}", "exclusiveMaximum": "< {:g}"}
    said = [text.format(schema[key]) for key, text in bounds.items() if key in schema]
    return " ".join([kind, " and ".join(said)]).strip()


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _quickstart_rows() -> Iterator[str]:
    ours, plain = _flat(quickstart_settings(10)), _flat(Settings())
    for name, value in ours.items():
        if value != plain[name]:
            yield f"| `{name}` | {_value(value)} | {_value(plain[name])} |\n"


def _flat(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section:
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return found


# --- both ---------------------------------------------------------------------------------------

PAGES = {"cli.md": cli_page, "settings.md": settings_page}


def main() -> None:
    """Write the pages, or with --check compare them."""
    stale = []
    for name, make in PAGES.items():
        path, text = FOLDER / name, make()
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        sys.exit(f"Not up to date: {', '.join(stale)}. Run: python docs/make_reference.py")


if __name__ == "__main__":
    main()
