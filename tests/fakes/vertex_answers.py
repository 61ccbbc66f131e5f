"""What the model behind the fake says: the Product Owner's embedded rules, well or poorly, whole or cut."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fakes.vertex_checks import Model, prompt_tokens, resolve, tokens
from po_distill.records import Concept
from po_distill.roles.product_owner.role import ProductOwnerRole

_LONG_PROMPT = 200_000
_REVIEW_FENCE = "```yaml REVIEW"


@dataclass
class Knobs:
    """How the server behaves. Shares are 0..1 and decided by hashes with `seed`, so that runs repeat."""

    latency_s: float = 0.0  # from the arrival to the answer; the median where sigma is above 0
    latency_sigma: float = 0.0  # of a lognormal distribution
    quota_rps: float = 0.0  # a token bucket: requests a second, 0 for no quota
    quota_burst: int = 1  # and how many may come at once
    retry_after: float | None = None  # the header of a 429, in seconds
    share_429: float = 0.0  # by arrival, so that a retry can pass; so are the next four
    share_5xx: float = 0.0
    hang_share: float = 0.0  # never answered, but billed
    truncate_share: float = 0.0  # half the body, then the connection is closed; billed
    drop_share: float = 0.0  # the connection is closed without a byte; billed
    blocked_prompt_share: float = 0.0  # by concept
    safety_share: float = 0.0  # by concept
    recitation_share: float = 0.0  # by conversation and seed of the request
    cut_below: int = 0  # half the text, or none, where maxOutputTokens is not above this
    omit_review_share: float = 0.0  # by conversation and seed; in answers that are not JSON
    low_score_share: float = 0.0  # by conversation and seed: a regenerated request is decided anew
    served_model: str | None = None  # another modelVersion than asked
    thinking_tokens: int = 0  # at most the request's thinkingBudget
    token_lifetime_s: float = 3600.0
    seed: int = 0


def decided(knobs: Knobs, share: float, what: str, key: object) -> bool:
    """Whether a thing that befalls a share of the keys befalls this one."""
    if share <= 0.0:
        return False
    digest = hashlib.sha256(f"{knobs.seed}|{what}|{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


@dataclass
class Answered:
    """A 200 and what it costs, in nano-dollars."""

    body: dict[str, Any]
    nanousd: int


@dataclass
class Author:
    """Writes answers. `answer` gives the text, or the whole body of the 200, in place of the rules."""

    answer: Callable[[dict[str, Any]], str | dict[str, Any]] | None = None
    _concepts: dict[str, Concept | None] = field(default_factory=dict)
    _texts: dict[tuple[str, bool, bool], str] = field(default_factory=dict)

    def concept(self, prompt: str) -> Concept | None:
        """The concept that a prompt is about; None where it is not a Product Owner's."""
        if prompt not in self._concepts:
            self._concepts[prompt] = ProductOwnerRole().read_prompt(prompt)
        return self._concepts[prompt]

    def write(self, body: dict[str, Any], name: str, model: Model, knobs: Knobs) -> Answered:
        """The answer to a body that was checked."""
        prompt, config = first_user_text(body), body.get("generationConfig", {})
        about = self.concept(prompt)
        subject = about.concept if about else prompt
        # Not the whole body: a doubled limit or another label is no other question.
        question = json.dumps([body["contents"], config.get("seed")])
        asked = prompt_tokens(body)
        envelope = {"modelVersion": knobs.served_model or name}
        if decided(knobs, knobs.blocked_prompt_share, "blocked prompt", subject):
            envelope["promptFeedback"] = {"blockReason": "PROHIBITED_CONTENT"}
            return _billed(envelope, model, asked, 0, 0)
        thinking = _thinking(config, knobs)
        if decided(knobs, knobs.safety_share, "safety", subject):
            return _candidate(envelope, model, None, "SAFETY", asked, thinking)
        if decided(knobs, knobs.recitation_share, "recitation", question):
            return _candidate(envelope, model, None, "RECITATION", asked, thinking)
        if self.answer is not None:
            said = self.answer(body)
            if isinstance(said, dict):
                return Answered(said, 0)
        else:
            said = self._by_rules(prompt, about, body, question, knobs)
        text, reason, thinking = _cut(said, thinking, config.get("maxOutputTokens", model.output_cap), knobs)
        return _candidate(envelope, model, text, reason, asked, thinking)

    def _by_rules(self, prompt: str, about: Concept | None, body: dict[str, Any], question: str, knobs: Knobs) -> str:
        config = body.get("generationConfig", {})
        as_json = config.get("responseMimeType") == "application/json"
        if about is None:
            schema = config.get("responseJsonSchema", config.get("responseSchema", {}))
            return json.dumps(instance(schema, schema)) if as_json else f"An answer of {tokens(prompt)} tokens."
        poor = decided(knobs, knobs.low_score_share, "low score", question)
        key = (prompt, as_json, poor)
        if key not in self._texts:
            role = ProductOwnerRole("json" if as_json else "fenced")
            text = role.answer_by_rules(about)
            self._texts[key] = role.canonical(_poor(role.parse(text).documents)) if poor else text
        text = self._texts[key]
        if not as_json and decided(knobs, knobs.omit_review_share, "omit review", question):
            return text[: text.index(_REVIEW_FENCE)].rstrip()
        return text


def first_user_text(body: dict[str, Any]) -> str:
    """The text of the first turn of the user, which has the concept."""
    for content in body["contents"]:
        if content["role"] == "user":
            return "".join(part["text"] for part in content["parts"])
    return ""


def instance(schema: Any, root: Any) -> Any:
    """The plainest JSON value that a schema allows."""
    if "$ref" in schema:
        return instance(resolve(root, schema["$ref"]) or {}, root)
    if schema.get("enum"):
        return schema["enum"][0]
    kind = str(schema.get("type", "object")).lower()
    if kind == "object":
        return {name: instance(one, root) for name, one in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items", {"type": "string"}), root)]
    return {"string": "text", "integer": 1, "number": 0.5, "boolean": True}.get(kind)


def _thinking(config: dict[str, Any], knobs: Knobs) -> int:
    budget = config.get("thinkingConfig", {}).get("thinkingBudget", -1)
    return knobs.thinking_tokens if budget < 0 else min(knobs.thinking_tokens, budget)


def _cut(text: str, thinking: int, most: int, knobs: Knobs) -> tuple[str | None, str, int]:
    """(text, finish reason, thinking tokens): thinking and text share the limit, and thinking comes first."""
    if thinking >= most:
        return None, "MAX_TOKENS", most
    if most <= knobs.cut_below:
        return text[: len(text) // 2], "MAX_TOKENS", thinking
    if tokens(text) + thinking > most:
        kept = max(0, (most - thinking) * 4 - 4)
        return text.encode()[:kept].decode("utf-8", "ignore") or None, "MAX_TOKENS", thinking
    return text, "STOP", thinking


def _candidate(
    envelope: dict[str, Any], model: Model, text: str | None, reason: str, asked: int, thinking: int
) -> Answered:
    content: dict[str, Any] = {"role": "model"}
    if text is not None:
        content["parts"] = [{"text": text}]
    envelope["candidates"] = [{"content": content, "finishReason": reason, "avgLogprobs": -0.1}]
    return _billed(envelope, model, asked, tokens(text) if text else 0, thinking)


def _billed(envelope: dict[str, Any], model: Model, asked: int, said: int, thinking: int) -> Answered:
    usage = {"promptTokenCount": asked, "totalTokenCount": asked + said + thinking, "trafficType": "ON_DEMAND"}
    usage.update({"candidatesTokenCount": said} if said else {})
    usage.update({"thoughtsTokenCount": thinking} if thinking else {})
    envelope["usageMetadata"] = usage
    long = model.long_prices is not None and asked > _LONG_PROMPT
    of_input, of_output = model.long_prices if long and model.long_prices else (model.input_price, model.output_price)
    # Prices are whole nano-dollars a token, so that there is nothing to round.
    return Answered(envelope, asked * of_input + (said + thinking) * of_output)


def _poor(documents: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same documents from a lazy author: one item a list, little said."""
    vision = {
        name: value[:1] if isinstance(value, list) else value for name, value in documents["product_vision"].items()
    }
    review = documents["product_owner_review"]
    fit = {name: value[:1] for name, value in review["requirements_alignment"].items()}
    vision["product_summary"] = "A product."
    return {
        "product_vision": vision,
        "product_owner_review": {
            **review,
            "summary": review["summary"][:1],
            "recommended_actions": ["Go on"],
            "requirements_alignment": fit,
            "narrative": "It fits.",
        },
    }
