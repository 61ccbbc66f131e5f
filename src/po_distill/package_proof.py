"""Whether a model on an Ollama server is what was packaged: what it is made of, the prompt it sees, how it answers."""

from __future__ import annotations

import ast
from collections import Counter
from typing import Any

from po_distill import plugins
from po_distill.errors import ContractMismatchError, InputError, ProviderError
from po_distill.interfaces import Role
from po_distill.ollama_server import MissingModelError, OllamaServer, Spoken, Turns
from po_distill.records import ChatForm, Concept, OllamaPackage, PromptContract
from po_distill.weights.chat_template import PROBES, render

_CONCEPTS, _SEED = 3, 11
_EXCERPT = 80


class UnprovenError(ProviderError):
    """A model on a server is not what was packaged, or does not answer as it should."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"{name} is not what was packaged: {why}",
            "See what it says with `ollama show` and `ollama run`; package it anew where the package is wrong.",
            fault="bad_answer",
        )


class PackageProof:
    """What a server has to show for a package. Raises InputError or ContractMismatchError where that cannot be said."""

    def __init__(self, package: OllamaPackage) -> None:
        if package.chat is None or not package.template:
            raise InputError(
                f"The package in {package.path} was made by an earlier version, and does not say how it is proven.",
                f"Package it again: po-distill package --model {package.path}",
            )
        self.package, self._chat = package, package.chat
        self._role = _role_of(package.contract) if package.contract else None
        self._concepts = self._role.generate_concepts(_CONCEPTS, _SEED) if self._role else []

    def hold(self, server: OllamaServer, name: str) -> Spoken:
        """Prove the model `name`; the answer that did. Raises UnprovenError, and ProviderError where none can tell."""
        try:
            self._check_made(name, server.show(name))
            for turns in self._conversations():
                self._check_prompt(name, server.render(name, turns), self._as_trained(turns))
            return self._answered(server, name)
        except UnprovenError:
            raise
        except ProviderError as error:
            if error.fault not in ("refused", "bad_answer") or isinstance(error, MissingModelError):
                raise
            raise UnprovenError(name, error.problem) from error

    # --- what it is made of ---------------------------------------------------------------------

    def _check_made(self, name: str, shown: dict[str, Any]) -> None:
        package = self.package
        wanted = {
            "quantization": package.gguf.quantization.upper(),
            "template": package.template,
            "system": package.system,
            "license": package.license or "",
        }
        found = {
            "quantization": str((shown.get("details") or {}).get("quantization_level", "")).upper(),
            **{key: shown.get(key) or "" for key in ("template", "system", "license")},
        }
        for key, value in wanted.items():
            if found[key] != value:
                raise UnprovenError(name, f"its {key} is {_short(found[key])}, packaged was {_short(value)}.")
        parameters = _read_parameters(str(shown.get("parameters") or ""))
        missing = _listed_parameters(package) - parameters
        extra = {key for key, _ in parameters - _listed_parameters(package)} & set(package.parameters)
        if missing or extra:
            told = ", ".join(sorted(f"{key} {value!r}" for key, value in parameters)) or "none"
            raise UnprovenError(name, f"its parameters are {told}; packaged were {package.parameters}.")

    # --- the prompt -----------------------------------------------------------------------------

    def _conversations(self) -> list[Turns]:
        """The role's real prompts, one of them without the system text, which the model's own stands in for."""
        asked: list[Turns] = [self._turns(concept) for concept in self._concepts]
        if asked and self.package.system:
            asked.append([turn for turn in asked[0] if turn["role"] != "system"])
        return asked or [probe for probe in PROBES if self._accepts(probe)]

    def _turns(self, concept: Concept) -> Turns:
        assert self._role is not None
        return [{"role": message.speaker, "content": message.content} for message in self._role.render(concept)]

    def _as_trained(self, turns: Turns) -> str:
        system = self.package.system
        if system and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": system}, *turns]
        return training_prompt(self._chat, turns)

    def _accepts(self, turns: Turns) -> bool:
        try:
            return bool(training_prompt(self._chat, turns))
        except InputError:
            return False

    def _check_prompt(self, name: str, found: str, wanted: str) -> None:
        if found != wanted:
            place = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
            place = min(len(found), len(wanted)) if place is None else place
            around = slice(max(place - 20, 0), place + 40)
            raise UnprovenError(
                name,
                f"its prompt departs from the training prompt at character {place}: it has {found[around]!r}, "
                f"training had {wanted[around]!r}.",
            )

    # --- the answer -----------------------------------------------------------------------------

    def _answered(self, server: OllamaServer, name: str) -> Spoken:
        """An answer that ended by itself and that the role can read, to one of a few concepts, decoded greedily."""
        asked: list[tuple[Concept | None, Turns]] = [(concept, self._turns(concept)) for concept in self._concepts]
        asked = asked or [(None, PROBES[0])]
        why = ""
        for concept, turns in asked:
            spoken = server.chat(name, turns, temperature=0.0)
            why = self._wrong(concept, spoken)
            if not why:
                return spoken
        raise UnprovenError(name, f"{why} It was asked {len(asked)} times, about other concepts each time.")

    def _wrong(self, concept: Concept | None, spoken: Spoken) -> str:
        said = f"It began: {_short(spoken.text)}."
        if spoken.done_reason != "stop":
            return f"it did not stop by itself within {spoken.answer_tokens} tokens. {said}"
        if concept is None or self._role is None:
            return ""
        score = self._role.score(concept, spoken.text)
        if score.valid:
            return ""
        found = ", ".join(violation.kind for violation in score.violations) or "it is not in the contract's form"
        return f"its answer cannot be read by the role {self._role.name}: {found}. {said}"


def training_prompt(chat: ChatForm, turns: Turns) -> str:
    """A conversation as training rendered it, up to where the answer begins, without the BOS that a runtime adds.

    Raises InputError where the chat template refuses it.
    """
    from jinja2 import TemplateError

    try:
        text = render(chat.template, [dict(turn) for turn in turns], bos=chat.bos, eos=chat.eos)
    except TemplateError as error:
        raise InputError(f"The chat template refuses a conversation: {error}.", "Correct the base model's.") from error
    return text.removeprefix(chat.bos) if chat.runtime_adds_bos else text


def _role_of(contract: PromptContract) -> Role:
    """The role as it asks under this contract. Raises ContractMismatchError where it asks otherwise by now."""
    kind = plugins.load("roles", contract.role)
    role: Role = kind(contract=contract.name)
    if role.contract.system != contract.system:
        role = kind(contract=contract.name, prompt=contract.system)
    if role.contract.digest != contract.digest:
        raise ContractMismatchError(
            f"The student was trained under the prompt contract {contract.digest[:19]}, the role {contract.role} asks "
            f"under {role.contract.digest[:19]}.",
            "Use the version of po_distill (or of the role's package) that it was trained with, or train it again.",
        )
    return role


def _listed_parameters(package: OllamaPackage) -> Counter[tuple[str, float | str]]:
    pairs: list[tuple[str, float | str]] = [("stop", stop) for stop in package.stops]
    pairs += [(key, float(value)) for key, value in package.parameters.items() if not isinstance(value, list)]
    return Counter(pairs)


def _read_parameters(text: str) -> Counter[tuple[str, float | str]]:
    """The lines of `show`: a name, blanks, and a value as Go writes it, texts in its quotes."""
    found: Counter[tuple[str, float | str]] = Counter()
    for line in filter(None, text.split("\n")):
        key, _, written = line.partition(" ")
        value: float | str = written.strip()
        try:
            read = ast.literal_eval(str(value))  # Go's escapes are Python's
            value = float(read) if isinstance(read, int | float) else str(read)
        except (ValueError, SyntaxError):
            pass
        found[key, value] += 1
    return found


def _short(text: str) -> str:
    return repr(text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…")
