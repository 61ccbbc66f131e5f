"""Gemini's wire format: a request as `generateContent` takes it, its answer as a Response.

Shapes as in the REST reference of Vertex AI (`v1`, generateContent); camelCase throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from po_distill.errors import ProviderError
from po_distill.records import Request, Response, Usage

_BLOCKED = frozenset({"SAFETY", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "MODEL_ARMOR"})
_FINISHES = {"STOP": "stop", "MAX_TOKENS": "length"}


def request_body(request: Request) -> dict[str, Any]:
    """The body of a generateContent call. System messages become `systemInstruction`, in order."""
    config: dict[str, Any] = {
        "temperature": request.generation.temperature,
        "maxOutputTokens": request.generation.max_tokens,
    }
    if request.generation.seed is not None:
        config["seed"] = request.generation.seed
    thinking = request.generation.thinking
    if isinstance(thinking, str):
        config["thinkingConfig"] = {"thinkingLevel": thinking.upper()}
    elif thinking is not None:
        config["thinkingConfig"] = {"thinkingBudget": thinking}
    if request.json_schema is not None:
        config["responseMimeType"] = "application/json"
        config["responseJsonSchema"] = request.json_schema
    body: dict[str, Any] = {
        "contents": [
            {"role": "model" if message.speaker == "assistant" else "user", "parts": [{"text": message.content}]}
            for message in request.messages
            if message.speaker != "system"
        ],
        "generationConfig": config,
    }
    system = [message.content for message in request.messages if message.speaker == "system"]
    if system:
        body["systemInstruction"] = {"parts": [{"text": text} for text in system]}
    return body


def response_of(answer: Mapping[str, Any], *, asked: str, who: str) -> Response:
    """The Response in the JSON of a generateContent answer. `asked` is the model that was asked for.

    A blocked prompt has no candidates and a `promptFeedback`; a candidate that was cut while it thought has no parts.
    Finish reasons that nobody knows yet are `other`. Raises ProviderError where the answer is none of these.
    """
    usage = _usage(answer.get("usageMetadata"))
    model = answer.get("modelVersion")
    served = model if isinstance(model, str) and model else asked
    candidates = answer.get("candidates")
    feedback = answer.get("promptFeedback")
    if not candidates and isinstance(feedback, Mapping) and feedback.get("blockReason"):
        reason = str(feedback["blockReason"])
        return Response(text="", model=served, finish="blocked", finish_reason=f"prompt: {reason}", usage=usage)
    if not isinstance(candidates, list) or not candidates or not isinstance(candidates[0], Mapping):
        raise ProviderError(
            f"{who} answered without a candidate: {sorted(answer)}.",
            "It is tried again.",
            fault="unavailable",
            doubtful=True,
        )
    candidate = candidates[0]
    reason = str(candidate.get("finishReason") or "FINISH_REASON_UNSPECIFIED")
    return Response.model_validate(
        {
            "text": _text(candidate.get("content")),
            "model": served,
            "finish": "blocked" if reason in _BLOCKED else _FINISHES.get(reason, "other"),
            "finish_reason": reason,
            "usage": usage,
        }
    )


def _text(content: Any) -> str:
    parts = content.get("parts") if isinstance(content, Mapping) else None
    return "".join(
        part["text"]
        for part in (parts if isinstance(parts, list) else ())
        if isinstance(part, Mapping) and isinstance(part.get("text"), str) and not part.get("thought")
    )


def _usage(metadata: Any) -> Usage:
    counts = metadata if isinstance(metadata, Mapping) else {}

    def count(name: str) -> int:
        value = counts.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    thinking = count("thoughtsTokenCount")
    return Usage(
        prompt_tokens=count("promptTokenCount"),
        completion_tokens=count("candidatesTokenCount") + thinking,
        thinking_tokens=thinking,
        cached_tokens=count("cachedContentTokenCount"),
    )
