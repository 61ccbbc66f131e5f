"""What models can do and cost: the table that comes with the library, and the user's own rows over it.

Money is counted in whole nano-dollars (1e-9 USD), so that sums are exact: a token at $1.25 a million is 1,250.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from po_distill import safe_yaml
from po_distill.artifacts import digest_value, read_text
from po_distill.errors import SettingsError
from po_distill.records import ModelCapabilities, Price, Request, Usage

NANOUSD = 1_000_000_000
_NANOUSD_FOR_A_TOKEN = 1_000  # at one dollar a million

# What a message and a request cost beside their text, whatever the tokenizer: roles, turn marks, BOS.
_TOKENS_OF_A_MESSAGE = 16


def find_model(name: str | None, own_table: Path | str | None = None) -> ModelCapabilities | None:
    """The row of a model: the longest `model` that is its name or begins it before a `-`, `@` or `:`.

    Rows of `own_table` (a YAML list, as models.yaml) come before the library's. None where no row fits. Raises
    SettingsError where that file has a row that is none.
    """
    if not name:
        return None
    short = name.rpartition("/")[2]
    for rows in (read_rows(own_table) if own_table else (), _own_rows()):
        fitting = [row for row in rows if _names(row.model, short) or _names(row.model, name)]
        if fitting:
            return max(fitting, key=lambda row: len(row.model))
    return None


def same_model(asked: str, served: str) -> bool:
    """Whether a served model is the one that was asked for, or a version of it: `gemini-2.5-pro-002`."""
    return _names(asked.rpartition("/")[2], served.rpartition("/")[2])


def _names(begin: str, name: str) -> bool:
    """Whether `name` is `begin`, or `begin` with a version behind it.

    A version is digits, dates or `latest`: gemini-2.5-flash is no version of gemini-2.5, gpt-x-mini none of gpt-x.
    """
    if name == begin:
        return True
    rest = name.removeprefix(begin)
    if rest == name or rest[0] not in "-@:":
        return False
    return all(part.isdigit() or part == "latest" for part in rest[1:].replace("@", "-").replace(":", "-").split("-"))


def read_rows(path: Path | str) -> tuple[ModelCapabilities, ...]:
    """The rows of a model table. Raises SettingsError, with the row and the field, where one is wrong."""
    return _rows(safe_yaml.load(read_text(path), what=str(path)), str(path))


@functools.cache
def _own_rows() -> tuple[ModelCapabilities, ...]:
    text = importlib.resources.files("po_distill").joinpath("models.yaml").read_text(encoding="utf-8")
    return _rows(safe_yaml.load(text), "models.yaml")


def _rows(value: Any, where: str) -> tuple[ModelCapabilities, ...]:
    if not isinstance(value, list):
        raise SettingsError(f"{where} is no list of models.", "Write it as src/po_distill/models.yaml is written.")
    rows = []
    for number, row in enumerate(value, start=1):
        try:
            rows.append(ModelCapabilities.model_validate(row))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"])) or "the row"
            raise SettingsError(
                f"{where}, model {number}: {field}: {first['msg'].lower()}.",
                f"A model has the fields {', '.join(ModelCapabilities.model_fields)}; a price has "
                f"{', '.join(Price.model_fields)}.",
            ) from error
    return tuple(rows)


# --- money --------------------------------------------------------------------------------------


def price_for(prices: Sequence[Price], prompt_tokens: int, today: date) -> Price | None:
    """The price that holds today for a prompt of that size; None where none is known.

    Of the prices that hold, the one for the longest prompts that this one passes; then the one that ends first.
    """
    holding = [
        price
        for price in prices
        if prompt_tokens > price.above_prompt_tokens or price.above_prompt_tokens == 0
        if price.until is None or today.isoformat() <= price.until
    ]
    return min(holding, key=lambda price: (-price.above_prompt_tokens, price.until or "9999"), default=None)


def price_id(model: str, price: Price) -> str:
    """What a cost log calls a price: `gemini-2.5-pro@2026-09-20` or `...@2026-09-20>200000`."""
    above = f">{price.above_prompt_tokens}" if price.above_prompt_tokens else ""
    return f"{model}@{price.seen_on}{above}"


def cost_nanousd(price: Price, usage: Usage, factor: float = 1.0) -> int:
    """What a call cost, in nano-dollars; a part of one is rounded half up, once a call."""
    cached_usd = price.input_usd if price.cached_input_usd is None else price.cached_input_usd
    uncached = max(usage.prompt_tokens - usage.cached_tokens, 0)
    dollars_a_million = (
        uncached * price.input_usd
        + (usage.prompt_tokens - uncached) * cached_usd
        + usage.completion_tokens * price.output_usd
    )
    # Sums of such products carry binary rubbish behind the ninth digit; it must not tip a rounding.
    return math.floor(round(dollars_a_million * _NANOUSD_FOR_A_TOKEN * factor, 6) + 0.5)


def worst_usage(request: Request, capabilities: ModelCapabilities) -> Usage:
    """The most tokens that a call can be billed for.

    A token is at least one byte of the prompt (byte-level BPE and SentencePiece with byte fallback alike), and
    thinking is within the answer's limit.
    """
    prompt = sum(len(m.content.encode("utf-8", "replace")) + _TOKENS_OF_A_MESSAGE for m in request.messages)
    prompt += schema_facts(request.json_schema).size_bytes
    return Usage(
        prompt_tokens=min(prompt + _TOKENS_OF_A_MESSAGE, capabilities.context_tokens),
        completion_tokens=min(request.generation.max_tokens, capabilities.output_cap_tokens),
    )


class SchemaFacts(NamedTuple):
    """What is known of a JSON schema by its text."""

    digest: str | None
    size_bytes: int


_NO_SCHEMA = SchemaFacts(None, 0)
_latest: tuple[Any, SchemaFacts] = (None, _NO_SCHEMA)


def schema_facts(schema: Any) -> SchemaFacts:
    """Digest and size of a request's JSON schema. A run has one schema, so that of the latest is kept."""
    global _latest
    if schema is None:
        return _NO_SCHEMA
    if _latest[0] is not schema:
        size_bytes = len(json.dumps(schema, ensure_ascii=False).encode())
        _latest = (schema, SchemaFacts(digest_value(schema), size_bytes))
    return _latest[1]


def worst_price(prices: Sequence[Price], worst: Usage, today: date) -> int:
    """The most nano-dollars that a call with such usage can cost, whichever price turns out to hold.

    The call may end tomorrow, its prompt may turn out smaller, and all of it may be cached.
    """
    sizes = {price.above_prompt_tokens + 1 for price in prices if price.above_prompt_tokens < worst.prompt_tokens}
    days = (today, today + timedelta(days=1))
    held = [
        price_for(prices, min(size, worst.prompt_tokens), day) for size in sizes | {worst.prompt_tokens} for day in days
    ]
    usages = [worst]
    if any(price and price.cached_input_usd for price in held):
        usages.append(worst.model_copy(update={"cached_tokens": worst.prompt_tokens}))
    return max((cost_nanousd(price, usage) for price in held if price for usage in usages), default=0)
