"""Who is evaluated, and on which cases: candidates as they are given, the cases that they have in common.

What can be refused is refused here, before anybody is asked: a case that was trained on, an answer that is missing, one
to another prompt, a name that no file can have.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from po_distill.artifacts import digest_file
from po_distill.errors import InputError, SettingsError
from po_distill.held_out import listed, read_cases, refuse_leaks, stratified
from po_distill.interfaces import Role
from po_distill.recorded_answers import Tries, answers_to, read_completions, read_recorded_cases, tries_by_case
from po_distill.records import Completion, Concept, ProviderSettings

Candidate: TypeAlias = ProviderSettings | Path | str | Sequence[Completion]
"""Whom to judge: a provider to ask, or recorded completions (a file, or the records themselves)."""

Cases: TypeAlias = Path | str | Sequence[Concept] | None
"""The held-out concepts: themselves, or a file of them; None is what the reference was asked."""


def check_names(candidates: Mapping[str, Candidate], reference: str | None, production: str | None) -> None:
    """Raise where a candidate's name is none that a file can have, or a part is played by nobody."""
    if not candidates:
        raise InputError("There is nobody to evaluate.", "Give at least one candidate, such as student.")
    for name in candidates:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise SettingsError(
                f"A candidate cannot be named {name!r}: its completions go to a file of that name.",
                "Use letters, digits, dots, dashes and underscores.",
            )
    for what, named in (("reference", reference), ("model in production", production)):
        if named is not None and named not in candidates:
            raise SettingsError(
                f"The {what} {named!r} is not among the candidates.", f"Candidates: {', '.join(candidates)}."
            )


def held_out_cases(
    cases: Cases,
    candidates: Mapping[str, Candidate],
    reference: str | None,
    role: Role,
    *,
    subset: int | None,
    watch: frozenset[str],
    train_path: Path | str | None,
) -> list[Concept]:
    """The cases to evaluate on. Raises InputError, with the ids, where one cannot be used or was trained on."""
    concepts = _given_cases(cases, candidates, reference, role)
    if not concepts:
        raise InputError("There are no held-out concepts to evaluate on.", "Give at least one.")
    twice = [name for name, count in Counter(concept.concept_id for concept in concepts).items() if count > 1]
    if twice:
        raise InputError(f"Held-out concepts share their ids: {listed(twice)}.", "Give each an id of its own.")
    for concept in concepts:
        role.check(concept)
    if train_path is not None:
        refuse_leaks(concepts, train_path, role)
    labels = _answered_labels(concepts, candidates.get(reference or ""), role) if subset else {}
    return stratified(concepts, subset, keep=watch, labels=labels)


def _given_cases(cases: Cases, candidates: Mapping[str, Candidate], reference: str | None, role: Role) -> list[Concept]:
    if isinstance(cases, (str, Path)):
        return read_cases(cases, role)
    if cases is not None:
        return list(cases)
    first = [*([reference] if reference else []), *candidates]
    for candidate in (candidates[name] for name in first):
        if isinstance(candidate, (str, Path)):
            return read_recorded_cases(candidate, role)
        if not isinstance(candidate, ProviderSettings):
            return list({one.concept.concept_id: one.concept for one in candidate}.values())
    raise InputError("There are no held-out concepts to evaluate on.", "Name a file of cases with --data.")


def _answered_labels(concepts: Sequence[Concept], reference: Candidate | None, role: Role) -> dict[str, str | None]:
    """The classes that a recorded reference answered, where none are planted."""
    if isinstance(reference, ProviderSettings) or reference is None or all(one.planted_label for one in concepts):
        return {}
    given = read_completions(reference, role, known=concepts) if isinstance(reference, (str, Path)) else reference
    found = tries_by_case(concepts, given)
    return {
        one.concept_id: role.score(one, found[one.concept_id].first.text).label
        for one in concepts
        if one.concept_id in found
    }


def recorded_answers(
    name: str, candidate: Path | str | Sequence[Completion], cases: Sequence[Concept], role: Role
) -> list[Tries]:
    """What a candidate answered to the cases. Raises where an answer is missing, or is to another prompt."""
    if isinstance(candidate, (str, Path)):
        given: Sequence[Completion] = read_completions(candidate, role, known=cases)
        return answers_to(cases, given, role, f"{name!r} ({candidate})")
    return answers_to(cases, candidate, role, f"{name!r}")


def file_digest(candidate: Candidate | None) -> str | None:
    """The digest of the model file that a candidate is; None where it is none."""
    if not isinstance(candidate, ProviderSettings) or not candidate.model or not Path(candidate.model).is_file():
        return None
    return digest_file(candidate.model)


def source_digests(candidates: Mapping[str, Candidate], **others: object) -> dict[str, str]:
    """The digests of all files that figures come from: by candidate, and by the names of `others`."""
    files: dict[str, object] = dict(others)
    for name, candidate in candidates.items():
        files[name] = candidate.model if isinstance(candidate, ProviderSettings) else candidate
    return {
        name: digest_file(path)
        for name, path in files.items()
        if isinstance(path, (str, Path)) and Path(path).is_file()
    }
