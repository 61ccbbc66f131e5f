"""What Vertex AI refuses: tokens, projects, models, and the bodies of generateContent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


class RefusedError(Exception):
    """A refusal with Google's code, status and message."""

    def __init__(self, code: int, status: str, message: str) -> None:
        super().__init__(message)
        self.code, self.status, self.message = code, status, message

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message, "status": self.status}}


def invalid(message: str) -> RefusedError:
    return RefusedError(400, "INVALID_ARGUMENT", message)


@dataclass(frozen=True)
class Model:
    """A model's limits, and its prices in nano-dollars a token (a dollar a million tokens is 1000 of them)."""

    input_price: int
    output_price: int
    budgets: tuple[int, int] | None = None  # thinking tokens that it may be given; None: it takes levels
    long_prices: tuple[int, int] | None = None  # for prompts of more than 200,000 tokens
    output_cap: int = 65_536
    context: int = 1_048_576


MODELS = {
    "gemini-2.5-pro": Model(1250, 10_000, (128, 32_768), (2500, 15_000)),
    "gemini-2.5-flash": Model(300, 2500, (0, 24_576)),
    "gemini-3.1-pro-preview": Model(2000, 12_000),
    "gemini-3.5-flash": Model(1500, 9000),
    "gemini-3.8-flash": Model(750, 3750),
}


def tokens(text: str) -> int:
    """How many tokens a text is counted as."""
    return len(text.encode()) // 4 + 1


def prompt_tokens(body: dict[str, Any]) -> int:
    """Those of all turns and of the system instruction."""
    contents = [*([body["systemInstruction"]] if "systemInstruction" in body else []), *body["contents"]]
    return sum(tokens(part["text"]) for content in contents for part in content["parts"])


# --- names and types ----------------------------------------------------------------------------

_ANY, _SCHEMA = object(), object()  # kept as they are: JSON Schema has names of its own
_CONTENT = {"role": str, "parts": [{"text": str, "thought": bool, "thoughtSignature": str}]}
_BODY: dict[str, Any] = {
    "contents": [_CONTENT],
    "systemInstruction": _CONTENT,
    "safetySettings": [{"category": str, "threshold": str, "method": str}],
    "labels": _ANY,
    "generationConfig": {
        "temperature": float,
        "topP": float,
        "topK": float,
        "candidateCount": int,
        "maxOutputTokens": int,
        "stopSequences": [str],
        "seed": int,
        "presencePenalty": float,
        "frequencyPenalty": float,
        "responseLogprobs": bool,
        "logprobs": int,
        "responseMimeType": str,
        "responseModalities": [str],
        "responseSchema": _SCHEMA,
        "responseJsonSchema": _ANY,
        "thinkingConfig": {"thinkingBudget": int, "thinkingLevel": str, "includeThoughts": bool},
    },
}


def parse_body(raw: bytes) -> dict[str, Any]:
    """The JSON object that came."""
    try:
        body = json.loads(raw)
    except ValueError:
        raise invalid("Invalid JSON payload received. Unexpected token.") from None
    if not isinstance(body, dict):
        raise invalid("Invalid JSON payload received. Root element must be a message.")
    return body


def read_body(body: dict[str, Any]) -> dict[str, Any]:
    """The body with camelCase names. Unknown names and wrong types are refused."""
    found: dict[str, Any] = _read(body, _BODY, "")
    return found


def _read(value: Any, kind: Any, path: str) -> Any:
    if kind is _ANY:
        return value
    if kind is _SCHEMA:
        return _read_openapi_schema(value, path)
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise invalid(f"Invalid JSON payload received. Unknown name '{path}': Proto field is not repeating.")
        return [_read(item, kind[0], f"{path}[{number}]") for number, item in enumerate(value)]
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise invalid(f"Invalid value at '{path}' (type.googleapis.com/message), {json.dumps(value)}")
        return _read_message(value, kind, path)
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise invalid(f"Invalid value at '{path}' (TYPE_{kind.__name__.upper()}), {json.dumps(value)}")
    if kind is int and not -(2**31) <= value < 2**31:
        raise invalid(f"Invalid value at '{path}' (TYPE_INT32), {value}")
    return value


def _read_message(value: dict[str, Any], kinds: dict[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        camel = _camel(name)
        if camel not in kinds:
            at = f" at '{path}'" if path else ""
            raise invalid(f'Invalid JSON payload received. Unknown name "{name}"{at}: Cannot find field.')
        if camel in found:
            raise invalid(f"Invalid JSON payload received. Field '{camel}' is set twice.")
        found[camel] = _read(item, kinds[camel], f"{path}.{_snake(camel)}".lstrip("."))
    return found


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda match: "_" + match[0].lower(), name)


# --- schemas ------------------------------------------------------------------------------------

_OPENAPI = frozenset(
    ("type", "format", "title", "description", "nullable", "default", "example", "enum", "items", "minItems",
     "maxItems", "properties", "required", "propertyOrdering", "minProperties", "maxProperties", "minimum", "maximum",
     "minLength", "maxLength", "pattern", "anyOf")
)  # fmt: skip
_TYPES = frozenset(("string", "number", "integer", "boolean", "array", "object", "null"))
_MOST_PLACES, _MOST_DEEP = 400, 12


def _read_openapi_schema(value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise invalid(f"Invalid value at '{path}' (type.googleapis.com/google.cloud.aiplatform.v1.Schema)")
    found: dict[str, Any] = {}
    for name, item in value.items():
        camel = _camel(name)
        if camel not in _OPENAPI:
            raise invalid(f"Invalid JSON payload received. Unknown name \"{name}\" at '{path}': Cannot find field.")
        if camel == "properties":
            item = {key: _read_openapi_schema(one, f"{path}.properties") for key, one in item.items()}
        elif camel == "items":
            item = _read_openapi_schema(item, f"{path}.items")
        elif camel == "anyOf":
            item = [_read_openapi_schema(one, f"{path}.any_of") for one in item]
        found[camel] = item
    if str(found.get("type", "string")).lower() not in _TYPES:
        raise invalid(f"Invalid value at '{path}.type' (TYPE_ENUM), {json.dumps(found['type'])}")
    return found


def _schemas_in(schema: Any, depth: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Every schema in a JSON Schema, with how deep it lies."""
    if not isinstance(schema, dict):
        return
    yield schema, depth
    for name in ("items", "additionalProperties", "not"):
        yield from _schemas_in(schema.get(name), depth + 1)
    for name in ("properties", "$defs", "definitions"):
        for one in (schema.get(name) or {}).values():
            yield from _schemas_in(one, depth + 1)
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for one in schema.get(name) or ():
            yield from _schemas_in(one, depth + 1)


def _check_json_schema(root: Any) -> None:
    if not isinstance(root, dict):
        raise invalid("The response_json_schema is no JSON Schema.")
    places = list(_schemas_in(root))
    enums = sum(len(schema.get("enum", ())) for schema, _ in places)
    if len(places) + enums > _MOST_PLACES or max(depth for _, depth in places) > _MOST_DEEP:
        raise invalid("The specified schema produces a constraint that has too many states for serving.")
    for schema, _ in places:
        kinds = schema.get("type", "string")
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if kind not in _TYPES:
                raise invalid(f"The response_json_schema has the unknown type {json.dumps(kind)}.")
        reference = schema.get("$ref")
        if reference is None:
            continue
        if [name for name in schema if not name.startswith("$")]:
            raise invalid("If `$ref` is set on a sub-schema, no other properties, except those starting with `$`.")
        if resolve(root, reference) is None:
            raise invalid(f"The response_json_schema refers to {reference}, which it does not define.")


def resolve(root: dict[str, Any], reference: str) -> Any:
    """The schema that a `$ref` names; None where there is none."""
    found: Any = root
    for name in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return found


# --- values -------------------------------------------------------------------------------------

_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_LEVELS = ("MINIMAL", "LOW", "MEDIUM", "HIGH")
_sound_schemas: set[str] = set()  # by their JSON text, so that a load test checks one schema once


def check_body(body: dict[str, Any], name: str, model: Model) -> None:
    """Refuse values that the model does not take."""
    contents = body.get("contents")
    if not contents:
        raise invalid("Unable to submit request because at least one contents field is required.")
    for content in contents:
        if content.get("role") not in ("user", "model"):
            raise invalid("Please use a valid role: user, model.")
        _check_parts(content)
    if "systemInstruction" in body:
        _check_parts(body["systemInstruction"])
    asked = prompt_tokens(body)
    if asked > model.context:
        raise invalid(
            f"The input token count ({asked}) exceeds the maximum number of tokens allowed ({model.context})."
        )
    labels = body.get("labels", {})
    if not isinstance(labels, dict) or len(labels) > 64:
        raise invalid("Invalid value at 'labels': at most 64 pairs of texts.")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key) or not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            raise invalid(f"Label {json.dumps(key)}: keys and values may hold lower-case letters, digits, _ and -.")
    _check_config(body.get("generationConfig", {}), name, model)


def _check_parts(content: dict[str, Any]) -> None:
    if not content.get("parts"):
        raise invalid("Unable to submit request because it must include at least one parts field.")
    if not all(part.get("text") for part in content["parts"]):
        raise invalid("Unable to submit request because it must have a text parameter.")


def _check_config(config: dict[str, Any], name: str, model: Model) -> None:
    temperature, most = config.get("temperature", 1.0), config.get("maxOutputTokens", model.output_cap)
    if not 0 <= temperature <= 2:
        raise invalid(f"Unable to submit request because it has a temperature value of {temperature}, not in [0, 2].")
    if not 1 <= most <= model.output_cap:
        raise invalid(
            f"Unable to submit request because it has a maxOutputTokens value of {most} but the supported range is "
            f"from 1 (inclusive) to {model.output_cap + 1} (exclusive)."
        )
    if not 0 <= config.get("topP", 1.0) <= 1:
        raise invalid("Unable to submit request because it has a topP value outside of [0, 1].")
    if config.get("candidateCount", 1) != 1:
        raise invalid("Only one candidate can be generated.")
    _check_thinking(config.get("thinkingConfig", {}), name, model)
    _check_response_format(config)


def _check_thinking(thinking: dict[str, Any], name: str, model: Model) -> None:
    budget, level = thinking.get("thinkingBudget"), thinking.get("thinkingLevel")
    if budget is not None and level is not None:
        raise invalid("You can only set only one of thinking budget and thinking level.")
    if level is not None and level.upper() not in _LEVELS:
        raise invalid(f"Invalid value at 'generation_config.thinking_config.thinking_level' (TYPE_ENUM), \"{level}\"")
    if level is not None and model.budgets is not None:
        raise invalid(f"Thinking level is not supported for the model {name}.")
    if budget is not None and model.budgets is None:
        raise invalid(f"Thinking budget is not supported for the model {name}. Set the thinking level.")
    if budget is not None and model.budgets is not None and budget != -1:
        least, most = model.budgets
        if not least <= budget <= most:
            raise invalid(f"The thinking budget {budget} is invalid. Please choose a value between {least} and {most}.")


def _check_response_format(config: dict[str, Any]) -> None:
    kind = config.get("responseMimeType", "text/plain")
    if kind not in ("text/plain", "application/json", "text/x.enum"):
        raise invalid(f"Unable to submit request because it has the responseMimeType {json.dumps(kind)}.")
    schema, json_schema = config.get("responseSchema"), config.get("responseJsonSchema")
    if schema is None and json_schema is None:
        return
    if schema is not None and json_schema is not None:
        raise invalid("Only one of response_schema and response_json_schema can be set.")
    if kind != "application/json":
        raise invalid("Unable to submit request because a response schema needs responseMimeType application/json.")
    text = json.dumps(schema if json_schema is None else json_schema)
    if text not in _sound_schemas:
        _check_json_schema(_lower_types(schema) if json_schema is None else json_schema)
        _sound_schemas.add(text)


def _lower_types(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_lower_types(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value.lower() if name == "type" and isinstance(value, str) else _lower_types(value)
        for name, value in schema.items()
    }
