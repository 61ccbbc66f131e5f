"""Candidates side by side on held-out concepts: completions first, scores second, then the report."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

from po_distill import plugins
from po_distill.artifacts import digest_file, now, parse_record, read_jsonl, write_json, write_jsonl, write_text
from po_distill.calls import Caller, Retries
from po_distill.errors import ContractMismatchError, InputError, ProviderError, SettingsError
from po_distill.held_out import content, listed, read_cases, refuse_leaks, stratified
from po_distill.interfaces import Role
from po_distill.journal import Journal
from po_distill.progress import progress, say
from po_distill.records import (
    CandidateResult,
    Completion,
    Concept,
    EvaluationReport,
    GenerationSettings,
    ProviderSettings,
    Request,
    Score,
    Usage,
    Violation,
)
from po_distill.reporting.acceptance import judge
from po_distill.reporting.figures import candidate_result
from po_distill.reporting.html import render_html
from po_distill.reporting.markdown import render_markdown
from po_distill.source_rows import answer_of, concept_of

Candidate: TypeAlias = ProviderSettings | Path | str | Sequence[Completion]
"""Whom to judge: a provider to ask, or recorded completions (a JSONL file, or the records themselves)."""

_GENERATION = GenerationSettings(temperature=0.0, max_tokens=4096)
_RETRIES = Retries()


class Evaluator:
    """Judges candidates on the same held-out concepts, by the role's metric and as production reads them.

    `subset` takes so many of the cases, equally many of each planted label. `train_path` names what the student
    learned from: a case that is in there stops the run. Completions are kept in `folder`, journalled
    as they come, so a run that was killed asks only for what is missing. `report_path` is the Markdown
    report; the same as a page lies beside it as `.html`, as data as `.json`. None writes no report.
    """

    def __init__(
        self,
        role: str | Role = "product_owner",
        *,
        contract: str | None = None,
        prompt: str | None = None,
        subset: int | None = None,
        generation: GenerationSettings = _GENERATION,
        concurrency: int = 1,
        min_valid_share: float = 0.8,
        train_path: Path | str | None = None,
        folder: Path | str = "artifacts/evaluation",
        report_path: Path | str | None = "docs/po_distillation_report.md",
        log_path: Path | str | None = "logs/distillation/evaluation_calls.log",
        retries: Retries = _RETRIES,
    ) -> None:
        for name, value in (("subset", subset), ("concurrency", concurrency)):
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; it has to be at least 1.", "Give a positive number.")
        if not isinstance(role, str) and (contract or prompt):
            raise SettingsError(
                "A role that is open already has its contract and prompt.", "Name the role, or leave them out."
            )
        opened: Role = plugins.load("roles", role)(contract=contract, prompt=prompt) if isinstance(role, str) else role
        self.role = opened
        self._subset, self._generation, self._concurrency = subset, generation, concurrency
        self._min_valid_share, self._train_path = min_valid_share, train_path
        self._folder, self._log_path, self._retries = Path(folder), log_path, retries
        self._report_path = Path(report_path) if report_path else None

    def evaluate(
        self,
        cases: Path | str | Sequence[Concept],
        candidates: Mapping[str, Candidate],
        *,
        artifacts: Mapping[str, str] | None = None,
    ) -> EvaluationReport:
        """The report on the candidates, written to `report_path` too.

        `cases` are concepts, or a JSONL file of Concept, Example or Completion rows. The candidates named
        base, student and teacher are compared by the acceptance gate; any other is shown beside them.
        `artifacts` (name -> path) are listed in the report. Raises InputError where a case was trained on or a
        recorded candidate misses one, and ContractMismatchError where it answered another prompt.
        """
        self.role.self_test()
        held_out = self._held_out(cases)
        _check_names(candidates)
        # What can be refused is refused before the first call is made.
        recorded = {
            name: self._recorded(name, candidate, held_out)
            for name, candidate in candidates.items()
            if not isinstance(candidate, ProviderSettings)
        }
        answers: dict[str, list[Completion]] = {}
        with Journal(self._folder / "journal.sqlite") as journal:
            for name, candidate in candidates.items():
                if isinstance(candidate, ProviderSettings):
                    answers[name] = self._ask(name, candidate, held_out, journal)
                else:
                    answers[name] = recorded[name]
                write_jsonl(self._completions_path(name), answers[name])
        scored = {name: self._score(name, completions) for name, completions in answers.items()}
        report = self._report(held_out, scored, artifacts or {}, _digest_of(candidates.get("student")))
        self._write(report, scored)
        return report

    def _held_out(self, cases: Path | str | Sequence[Concept]) -> list[Concept]:
        concepts = read_cases(cases, self.role) if isinstance(cases, (str, Path)) else list(cases)
        if not concepts:
            raise InputError("There are no held-out concepts to evaluate on.", "Give at least one.")
        twice = [name for name, count in Counter(concept.concept_id for concept in concepts).items() if count > 1]
        if twice:
            raise InputError(f"Held-out concepts share their ids: {listed(twice)}.", "Give each an id of its own.")
        for concept in concepts:
            self.role.check(concept)
        if self._train_path is not None:
            refuse_leaks(concepts, self._train_path, self.role)
        return stratified(concepts, self._subset)

    # --- completions ----------------------------------------------------------------------------

    def _ask(self, name: str, settings: ProviderSettings, cases: list[Concept], journal: Journal) -> list[Completion]:
        caller = Caller(
            settings, self.role, journal, most=self._concurrency, log_path=self._log_path, retries=self._retries
        )
        if caller.tally.in_doubt:
            say(f"{caller.tally.in_doubt} calls of an earlier run are in doubt; they are asked again.")
        completions = []

        async def answer(concept: Concept) -> Completion:
            return await self._answer(concept, settings, caller)

        with (
            progress(f"Asking {name}", len(cases), "cases") as advance,
            closing(caller.stream(cases, answer, self._concurrency, in_order=True)) as results,
        ):
            for completion in results:
                completions.append(completion)
                advance(1, note=f"{completion.usage.latency_s:.1f} s a call")
        return completions

    async def _answer(self, concept: Concept, settings: ProviderSettings, caller: Caller) -> Completion:
        request = Request(messages=self.role.render(concept), generation=self._generation, concept=concept)
        digest = self.role.contract.digest
        try:
            answered = await caller.ask(request)
        except ProviderError as error:
            if error.fault not in ("bad_answer", "blocked"):
                raise
            # No answer is an answer that production cannot read.
            return Completion(
                concept=concept,
                text="",
                model=settings.model or settings.provider,
                provider=settings.provider,
                contract_digest=digest,
                finish=error.fault,
                created_at=now(),
            )
        response = answered.response
        return Completion(
            concept=concept,
            text=response.text,
            model=response.model,
            provider=settings.provider,
            contract_digest=digest,
            finish=response.finish,
            usage=response.usage,
            stand_in=response.stand_in,
            created_at=answered.answered_at,
        )

    def _recorded(
        self, name: str, candidate: Path | str | Sequence[Completion], cases: list[Concept]
    ) -> list[Completion]:
        """The recorded completions of the cases, in their order."""
        source = str(candidate) if isinstance(candidate, (str, Path)) else f"the completions of {name}"
        given = self._read_completions(candidate) if isinstance(candidate, (str, Path)) else candidate
        found: dict[tuple[str, str], Completion] = {}
        for completion in given:
            found.setdefault(content(completion.concept), completion)
        missing = [case.concept_id for case in cases if content(case) not in found]
        if missing:
            raise InputError(
                f"The candidate {name!r} ({source}) has no completion for {len(missing)} of {len(cases)} held-out "
                f"concepts: {listed(missing)}.",
                "Record them, or leave the concepts or the candidate out.",
            )
        # The case's own record: its planted label may be missing where the answer was recorded.
        chosen = [found[content(case)].model_copy(update={"concept": case, "score": None}) for case in cases]
        other = next((c for c in chosen if c.contract_digest != self.role.contract.digest), None)
        if other:
            raise ContractMismatchError(
                f"The candidate {name!r} ({source}) answered {other.concept.concept_id} under the prompt contract "
                f"{other.contract_digest[:19]}; this evaluation asks under {self.role.contract.digest[:19]}.",
                "Record it again under this contract, or evaluate with its --contract and --prompt.",
            )
        return chosen

    def _read_completions(self, path: Path | str) -> list[Completion]:
        return [self._completion(row, f"{path}, line {number}", Path(path)) for number, row in read_jsonl(path)]

    def _completion(self, row: dict[str, Any], where: str, path: Path) -> Completion:
        if "contract_digest" in row:
            return parse_record(row, Completion, where)
        text = answer_of(row, self.role)
        # Rows of other tools name no contract: that they were asked the same is for the user to know.
        return Completion(
            concept=concept_of(row, where, self.role),
            text=text or "",
            model=str(row.get("model") or path.name),
            provider="recorded",
            contract_digest=self.role.contract.digest,
            usage=Usage(
                latency_s=float(row.get("latency_s") or 0.0),
                prompt_tokens=int(row.get("prompt_tokens") or 0),
                completion_tokens=int(row.get("completion_tokens") or 0),
            ),
        )

    def _completions_path(self, name: str) -> Path:
        return self._folder / f"{name}.completions.jsonl"

    # --- scores and report ----------------------------------------------------------------------

    def _score(self, name: str, completions: list[Completion]) -> list[Completion]:
        scored = []
        with progress(f"Scoring {name}", len(completions), "answers") as advance:
            for completion in completions:
                score = self.role.score(completion.concept, completion.text)
                if not completion.text.strip():
                    score = _without_answer(score, completion.finish)
                scored.append(completion.model_copy(update={"score": score}))
                advance()
        return scored

    def _report(
        self,
        cases: list[Concept],
        scored: Mapping[str, list[Completion]],
        artifacts: Mapping[str, str],
        student_digest: str | None,
    ) -> EvaluationReport:
        results: dict[str, CandidateResult] = {
            name: candidate_result(name, completions) for name, completions in scored.items()
        }
        kept = {f"completions of {name}": str(self._completions_path(name)) for name in scored}
        return EvaluationReport(
            role=self.role.name,
            contract=self.role.contract,
            cases=len(cases),
            labels=dict(sorted(Counter(case.planted_label or "not planted" for case in cases).items())),
            candidates=tuple(results.values()),
            verdict=judge(results, min_valid_share=self._min_valid_share),
            generation=self._generation,
            created_at=now(),
            artifacts={**artifacts, **kept, **self._report_files()},
            student_digest=student_digest,
        )

    def _report_files(self) -> dict[str, str]:
        if self._report_path is None:
            return {}
        return {
            "report": str(self._report_path),
            "report as a page": str(self._report_path.with_suffix(".html")),
            "report as data": str(self._report_path.with_suffix(".json")),
        }

    def _write(self, report: EvaluationReport, scored: Mapping[str, Sequence[Completion]]) -> None:
        if self._report_path is None:
            return
        write_json(self._report_path.with_suffix(".json"), report)
        write_text(self._report_path.with_suffix(".html"), render_html(report, scored))
        write_text(self._report_path, render_markdown(report))


def _check_names(candidates: Mapping[str, Candidate]) -> None:
    if not candidates:
        raise InputError("There is nobody to evaluate.", "Give at least one candidate, such as student.")
    for name in candidates:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise SettingsError(
                f"A candidate cannot be named {name!r}: its completions go to a file of that name.",
                "Use letters, digits, dots, dashes and underscores.",
            )


def _without_answer(score: Score, finish: str) -> Score:
    violation = Violation(kind="no_answer", detail=f"the model answered nothing (finish: {finish})")
    return score.model_copy(update={"valid": False, "violations": (violation, *score.violations)})


def _digest_of(candidate: Candidate | None) -> str | None:
    """The digest of the file that a candidate is; None where it is none."""
    if not isinstance(candidate, ProviderSettings) or not candidate.model or not Path(candidate.model).is_file():
        return None
    return digest_file(candidate.model)
