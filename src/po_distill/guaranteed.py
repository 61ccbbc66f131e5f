"""Answers that are valid because nothing else can be decoded: held to a JSON schema, and written in the role's form.

The model writes JSON, since that is what runtimes can hold it to; production reads what the role's own `canonical`
makes of it. An answer that was cut stays as it came, so nobody takes it for one.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import JsonValue

from po_distill.answer_bounds import bounded_schema, tokens_for, too_few_tokens
from po_distill.errors import PODistillError, SettingsError
from po_distill.interfaces import Role
from po_distill.records import Concept, GenerationSettings, ProviderTraits, Request, Response

STRUCTURED = "json"
"""The contract that a role is asked under where the provider holds the answer to its JSON schema."""


def structured_role(role: Role) -> Role | None:
    """The role as it asks for structured output: under its contract `json`; None where it has no such contract.

    A system text of the user's own stays what it is: the schema, not the prompt, decides the form.
    """
    if STRUCTURED not in role.contracts:
        return None
    own = type(role)(contract=role.contract.name).contract.system
    prompt = None if role.contract.system == own else role.contract.system
    return type(role)(contract=STRUCTURED, prompt=prompt)


def decoding_schema(role: Role, concept: Concept, max_tokens: int) -> dict[str, JsonValue]:
    """What an answer about the concept is held to: the role's own `decoding_schema`, else its JSON schema with limits.

    Raises SettingsError where an answer may not fit into `max_tokens`.
    """
    own = getattr(role, "decoding_schema", None)
    if own is None:
        return bounded_schema(role.json_schema(), max_tokens, role.name)
    schema: dict[str, JsonValue] = own(concept, max_tokens)
    needed = tokens_for(schema)
    if needed is None:
        raise SettingsError(
            f"The decoding schema of the role {role.name} takes answers of any length.",
            "Give every list a maxItems, every text a maxLength, and every object additionalProperties: false.",
        )
    if needed > max_tokens:
        raise too_few_tokens(needed, max_tokens)
    return schema


def check_traits(traits: ProviderTraits, provider: str) -> None:
    """Raise SettingsError unless the provider holds answers to a schema."""
    if not traits.structured_output:
        raise SettingsError(
            f"The provider {provider} does not hold answers to a JSON schema, so it can guarantee none.",
            "Ask llama_cpp, ollama or openai_compatible; or leave --guaranteed-valid out.",
        )


class GuaranteedForm:
    """How a role is asked and read where its answers must be valid."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._asking = structured_role(role) or role

    def request(self, concept: Concept, generation: GenerationSettings) -> Request:
        """The question about a concept. Raises SettingsError where `max_tokens` may not suffice for an answer."""
        schema = decoding_schema(self._role, concept, generation.max_tokens)
        return Request(
            messages=self._asking.render(concept), generation=generation, concept=concept, json_schema=schema
        )

    def written(self, response: Response, stamp: str) -> str:
        """The answer in the role's own form, with the time `stamp`; as it came where it is no whole JSON object."""
        if response.finish != "stop" or not _is_object(response.text):
            return response.text
        documents = self._role.parse(response.text).documents
        try:
            return self._role.canonical(documents, stamp=stamp) if documents else response.text
        except PODistillError:
            return response.text


def _is_object(text: str) -> bool:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)
