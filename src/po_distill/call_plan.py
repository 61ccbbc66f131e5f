"""What a teacher's run would ask and cost, counted without sending anything."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from po_distill.errors import InputError
from po_distill.interfaces import Role
from po_distill.journal import Journal
from po_distill.model_table import (
    NANOUSD,
    cost_nanousd,
    price_for,
    price_id,
    schema_facts,
    worst_price,
    worst_usage,
)
from po_distill.records import CallPlan, Concept, GenerationSettings, Message, ProviderSettings, Request, Usage
from po_distill.sending import call_key, find_provider, traits_of

_CHARACTERS_A_TOKEN = 4
_GUESSED_ANSWER_TOKENS = 1_000  # beside thinking; the shared answers of one team have 706 on average
_FINDINGS = "x" * 1_000  # about what is said about an answer that is asked for again


def plan_calls(
    concepts: Iterable[Concept],
    *,
    role: Role,
    asking: Role,
    schema: dict[str, JsonValue] | None,
    settings: ProviderSettings,
    generation: GenerationSettings,
    regenerate: int,
    journal_path: Path,
    target: int | None = None,
) -> CallPlan:
    """The plan for these concepts. `asking` renders the prompts, `role` checks the concepts.

    What a target adds is counted like the given concepts, as if every answer were accepted.
    """
    traits = traits_of(find_provider(settings.provider))
    capabilities = settings.capabilities
    prices = capabilities.prices if capabilities else ()
    today = datetime.now(UTC).date()
    known = price_for(prices, 1, today) is not None or not traits.paid
    journal = Journal(journal_path) if journal_path.exists() else None
    try:
        answer_tokens = journal.mean_completion_tokens() if journal else None
        if answer_tokens is None:
            thinking = generation.thinking if isinstance(generation.thinking, int) else 0
            answer_tokens = _GUESSED_ANSWER_TOKENS + thinking
        longest_answer = min(generation.max_tokens, capabilities.output_cap_tokens if capabilities else 2**31)
        answer_tokens = min(answer_tokens, longest_answer)
        counts = {"concepts": 0, "to_ask": 0, "answered": 0, "unusable": 0}
        prompt_tokens = cost = worst = 0
        used: set[str] = set()
        seen: set[str] = set()  # what stands there twice is answered by the journal the second time
        for concept in concepts:
            counts["concepts"] += 1
            try:
                role.check(concept)
            except InputError:
                counts["unusable"] += 1
                continue
            request = Request(
                messages=asking.render(concept), generation=generation, concept=concept, json_schema=schema
            )
            key = call_key(request, 0, settings, traits)
            if key in seen or (journal and journal.result(key)):
                counts["answered"] += 1
                continue
            seen.add(key)
            counts["to_ask"] += 1
            characters = sum(len(message.content) for message in request.messages)
            likely = Usage(
                prompt_tokens=(characters + schema_facts(schema).size_bytes) // _CHARACTERS_A_TOKEN,
                completion_tokens=answer_tokens,
            )
            prompt_tokens += likely.prompt_tokens
            if capabilities and (price := price_for(prices, likely.prompt_tokens, today)):
                used.add(price_id(capabilities.model, price))
                cost += cost_nanousd(price, likely)
                longest = worst_price(prices, worst_usage(_asked_again(request), capabilities), today)
                worst += worst_price(prices, worst_usage(request, capabilities), today) + regenerate * longest
        charged = journal.charged_nanousd() if journal else 0
        variations = max((target or 0) - counts["concepts"], 0)
        if counts["to_ask"]:
            share = (counts["to_ask"] + variations) / counts["to_ask"]
            prompt_tokens, cost, worst = (round(amount * share) for amount in (prompt_tokens, cost, worst))
            counts["to_ask"] += variations
    finally:
        if journal:
            journal.close()
    return CallPlan(
        **counts,
        variations=variations if counts["to_ask"] else 0,
        prompt_tokens=prompt_tokens,
        completion_tokens=counts["to_ask"] * answer_tokens,
        cost_usd=cost / NANOUSD if known else None,
        worst_cost_usd=worst / NANOUSD if known else None,
        regenerate=regenerate,
        charged_usd=charged / NANOUSD,
        model=settings.model,
        prices=tuple(sorted(used)),
    )


def _asked_again(request: Request) -> Request:
    """The request with a whole answer and findings behind it, as long as they can be."""
    answer = Message(speaker="assistant", content="x" * _CHARACTERS_A_TOKEN * request.generation.max_tokens)
    findings = Message(speaker="user", content=_FINDINGS)
    return request.model_copy(update={"messages": (*request.messages, answer, findings)})
