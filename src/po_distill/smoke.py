"""One concept asked of a role's model as production asks it: is what comes back something that production can read?"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import closing
from pathlib import Path

from pydantic import JsonValue, ValidationError

from po_distill import plugins
from po_distill.calls import Answered, Caller, Retries
from po_distill.errors import PluginError, ProviderError, SettingsError
from po_distill.guaranteed import GuaranteedForm, check_traits
from po_distill.interfaces import Role
from po_distill.journal import Journal
from po_distill.model_table import find_model
from po_distill.records import Concept, GenerationSettings, ProviderSettings, Request, Response, SmokeResult, Usage
from po_distill.role_model import RoleModel
from po_distill.sending import find_provider, traits_of

_RATE_LIMITED_S = 60.0  # a server that has no place for so long is told of
_TIMEOUT = "timeout_s"
# What a fix of another command speaks of -> the fix that holds here.
_FIXES_HERE = {
    "ollama pull": "`ollama list` shows what is there; `po-distill package` makes what a student is created from.",
    "num_ctx": "Package the student with a larger num_ctx, or give a shorter concept.",
    "--allow-model": "Let the config name the model that answers, or see why another one does.",
}


def ask_as_production(
    role: Role,
    model: RoleModel,
    concept: Concept,
    *,
    options: dict[str, JsonValue] | None = None,
    timeout_s: float = 600.0,
    keep_answer: bool = False,
    guaranteed_valid: bool = False,
) -> SmokeResult:
    """What the model answers to the concept: read strictly, as production does, and forgivingly; scored; timed.

    The prompt is the role's own (its system text, then the blocks of the concept), temperature and longest answer are
    the config's. `options` of the provider go before the config's. The request is sent once, through a journal that is
    thrown away, so no earlier answer is read and none is kept. `keep_answer` puts the answer, and what is wrong with it
    in words that may quote it, into the result. `guaranteed_valid` has it decoded under a JSON schema, as
    `valid_answer` does for the role's own code. Raises InputError where the role cannot work on the concept,
    SettingsError where the model cannot be asked as the config wants it, and ProviderError where no answer came,
    within `timeout_s` seconds.
    """
    role.check(concept)
    generation = _generation(model)
    settings = ProviderSettings(
        provider=model.provider,
        model=model.model,
        base_url=model.base_url,
        options={**model.options, **(options or {}), **_time_limit(model, timeout_s)},
        capabilities=find_model(model.model),
    )
    request = Request(messages=role.render(concept), generation=generation, concept=concept)
    form = GuaranteedForm(role) if guaranteed_valid else None
    if form is not None:
        check_traits(traits_of(find_provider(model.provider)), model.provider)
        request = form.request(concept, generation)
    response, answered_at = _answer(settings, role, request, timeout_s)
    if form is not None:
        response = response.model_copy(update={"text": form.written(response, answered_at)})
    return _judged(role, model, concept, generation, response, answered_at, keep_answer=keep_answer)


# --- the call -------------------------------------------------------------------------------------


def _generation(model: RoleModel) -> GenerationSettings:
    given = {"temperature": model.temperature, "max_tokens": model.max_tokens}
    try:
        return GenerationSettings.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(
            f"{model.model} cannot be asked with a temperature of {model.temperature} and {model.max_tokens} tokens.",
            "In the role's section of the config, temperature is from 0 to 2, max_tokens from 1 on.",
        ) from error


def _time_limit(model: RoleModel, timeout_s: float) -> dict[str, JsonValue]:
    """The limit as an option, where the provider has one of its own, which may be shorter."""
    if ":" not in model.provider and model.provider not in plugins.names("providers"):
        raise PluginError(
            f"{model.source} has {model.model} asked of {model.provider}, whose type is none that is known here.",
            f"Give providers.{model.provider} one of the types {', '.join(plugins.names('providers'))}.",
        )
    traits = traits_of(find_provider(model.provider))
    return {_TIMEOUT: timeout_s} if _TIMEOUT in traits.transport_options else {}


def _answer(settings: ProviderSettings, role: Role, request: Request, timeout_s: float) -> tuple[Response, str]:
    """(the response, when it came). Raises ProviderError."""
    retries = Retries(sends=1, doubtful_sends=1, breaker_s=min(_RATE_LIMITED_S, timeout_s / 2))
    with (
        tempfile.TemporaryDirectory(prefix="po-distill-smoke-") as folder,
        Journal(Path(folder) / "journal.sqlite") as journal,
    ):
        caller = Caller(settings, role, journal, most=1, retries=retries, drain_s=0.0)

        async def ask(request: Request) -> Answered:
            async with asyncio.timeout(timeout_s):
                return await caller.ask(request)

        try:
            with closing(caller.stream([request], ask, 1)) as results:
                answered = next(results)
        except (ProviderError, TimeoutError) as error:
            raise _told(error, settings, timeout_s) from error
    return answered.response, answered.answered_at


def _told(error: ProviderError | TimeoutError, settings: ProviderSettings, timeout_s: float) -> ProviderError:
    """The error with a fix that holds here, where nothing is asked twice and nothing is kept."""
    if isinstance(error, TimeoutError) or error.fault == "timeout":
        return ProviderError(
            f"{settings.model} of {settings.provider} did not answer within {timeout_s:g} s.",
            "Give it more with --timeout-s (a large model may take minutes to load), or see why it is slow.",
            fault="timeout",
        )
    fix = error.fix.removeprefix("It is tried again; ")
    fix = next((here for elsewhere, here in _FIXES_HERE.items() if elsewhere in fix), fix[:1].upper() + fix[1:])
    return ProviderError(error.problem, fix, fault=error.fault, doubtful=error.doubtful)


# --- the result -----------------------------------------------------------------------------------


def _judged(
    role: Role,
    model: RoleModel,
    concept: Concept,
    generation: GenerationSettings,
    response: Response,
    answered_at: str,
    *,
    keep_answer: bool,
) -> SmokeResult:
    score = role.score(concept, response.text)
    read = role.parse(response.text).documents
    wanted = role.json_schema().get("properties")
    names = (*wanted, *read) if isinstance(wanted, dict) else tuple(read)
    problems = _problems(response, generation, readable=score.valid)
    return SmokeResult(
        role=role.name,
        provider=model.provider,
        model=model.model,
        served_model=response.model,
        source=model.source,
        stand_in=response.stand_in,
        contract_digest=role.contract.digest,
        generation=generation,
        concept_id=concept.concept_id,
        expected_label=concept.planted_label,
        documents={name: bool(read.get(name)) for name in dict.fromkeys(names)},
        readable=score.valid,
        label=score.label,
        score=score.value,
        violations=tuple(dict.fromkeys(violation.kind for violation in score.violations)),
        finish=response.finish,
        finish_reason=response.finish_reason,
        usage=response.usage,
        tokens_per_s=_tokens_per_s(response.usage),
        passed=not problems,
        problems=problems,
        answered_at=answered_at,
        answer=response.text if keep_answer else None,
        findings=tuple(f"{v.kind}: {v.detail}" for v in score.violations) if keep_answer else (),
    )


def _problems(response: Response, generation: GenerationSettings, *, readable: bool) -> tuple[str, ...]:
    found = [] if readable else ["production cannot read the answer as it stands"]
    if not response.text.strip():
        found = ["the answer is empty"]
    if response.finish == "length":
        found.append(
            f"the answer was cut after {response.usage.completion_tokens} tokens (max_tokens is "
            f"{generation.max_tokens}, or the context is full)"
        )
    elif response.finish != "stop":
        found.append(f"the answer did not end by itself: {response.finish_reason or response.finish}")
    return tuple(found)


def _tokens_per_s(usage: Usage) -> float | None:
    """Tokens of the answer in a second of the call, loading the model left out; None where a part is not known."""
    spent_s = usage.latency_s - (usage.load_s or 0.0)
    return usage.completion_tokens / spent_s if usage.completion_tokens and spent_s > 0 else None
