"""Candidates side by side on held-out concepts: completions first, scores second, then the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from po_distill import plugins
from po_distill.artifacts import now, write_json, write_jsonl, write_text
from po_distill.calls import Retries
from po_distill.candidate_asking import CandidateAsking
from po_distill.candidates import (
    Candidate,
    Cases,
    check_names,
    file_digest,
    held_out_cases,
    recorded_answers,
    source_digests,
)
from po_distill.errors import SettingsError
from po_distill.gate_rules import GateRules, read_gate
from po_distill.interfaces import Role
from po_distill.journal import Journal
from po_distill.judging import judge_answers
from po_distill.meaning import Meaning, open_meaning
from po_distill.metric import load_metric, self_test
from po_distill.paired_comparison import compare
from po_distill.progress import progress
from po_distill.rating import Answered, Rater
from po_distill.recorded_answers import Tries
from po_distill.records import (
    CandidateResult,
    CaseResult,
    Completion,
    Concept,
    EvaluationReport,
    GenerationSettings,
    ProviderSettings,
)
from po_distill.reporting.acceptance import judge, judged_name
from po_distill.reporting.figures import candidate_result, clusters_of, counted, slices_of
from po_distill.reporting.html import render_html
from po_distill.reporting.markdown import render_markdown
from po_distill.reporting.observations import observations, recommendations
from po_distill.reporting.projections import Work, projections
from po_distill.role_paths import REPORT, of_role
from po_distill.row_stream import looked_at

_GENERATION = GenerationSettings(temperature=0.0, max_tokens=4096)
_RETRIES = Retries()
_TEACHER = "teacher"


class Evaluator:
    """Judges candidates on the same held-out concepts, by the role's metric and as production reads them.

    `subset` takes so many of the cases, equally many of each verdict and in it of each tier, and all that are watched.
    `train_path` names what the student learned from: a case that is in there stops the run. `tries` is how often a
    candidate is asked until production can read its answer; what is judged is the first try. `gate` names the rules of
    the verdict: `production` (where there is a reference) or `basic` (where there is none), or a YAML file.
    `min_valid_share` takes the place of the gate's own. `watch` names concepts known to be hard, by default the role's.
    `guaranteed_valid` has answers decoded under the role's JSON schema, and written in its own form (`guaranteed`).
    `metric` is a `package.module:function` in place of the role's own. `meaning` names what compares meanings
    (`po_distill.embeddings`), or is None. `judged_by` is a model that compares answers with the reference's.

    Completions are kept in `folder`, journalled as they come, so a run that was killed asks only for what is missing.
    `report_path` is the Markdown report; the same as a page lies beside it as `.html`, as data as `.json`. None writes
    no report. Equal completions, settings and `seed` give equal figures.
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
        tries: int = 1,
        interleaved: bool = True,
        guaranteed_valid: bool = False,
        gate: str | Path | GateRules | None = None,
        min_valid_share: float | None = None,
        watch: Sequence[str] | None = None,
        metric: str | None = None,
        meaning: str | None = "words",
        train_path: Path | str | None = None,
        folder: Path | str = "artifacts/evaluation",
        report_path: Path | str | None = REPORT,
        log_path: Path | str | None = "logs/distillation/evaluation_calls.log",
        retries: Retries = _RETRIES,
        works: Sequence[Work] = (),
        judged_by: ProviderSettings | None = None,
        workers: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("subset", subset), ("concurrency", concurrency), ("tries", tries)):
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; it has to be at least 1.", "Give a positive number.")
        if not isinstance(role, str) and (contract or prompt):
            raise SettingsError(
                "A role that is open already has its contract and prompt.", "Name the role, or leave them out."
            )
        opened: Role = plugins.load("roles", role)(contract=contract, prompt=prompt) if isinstance(role, str) else role
        self.role = opened
        self._subset, self._generation, self._concurrency = subset, generation, concurrency
        self._tries, self._interleaved, self._gate = tries, interleaved, gate
        self._guaranteed_valid = guaranteed_valid
        self._min_valid_share, self._train_path = min_valid_share, train_path
        self._watch = frozenset(watch if watch is not None else getattr(opened, "watch", ()))
        self._meaning: Meaning | None = open_meaning(meaning) if meaning else None
        self._metric = load_metric(metric) if metric else None
        self._rater = Rater(opened, metric=self._metric, meaning=self._meaning)
        self._folder, self._log_path, self._retries = Path(folder), log_path, retries
        self._report_path = Path(of_role(report_path, opened)) if report_path else None
        self._works, self._judged_by, self._workers, self._seed = tuple(works), judged_by, workers, seed

    def evaluate(
        self,
        cases: Cases,
        candidates: Mapping[str, Candidate],
        *,
        reference: str | None = None,
        production: str | None = None,
        artifacts: Mapping[str, str] | None = None,
    ) -> EvaluationReport:
        """The report on the candidates, written to `report_path` too.

        `cases` are concepts, or a file of Concept, Example or Completion rows; None takes what the reference, else the
        first recorded candidate, was asked. `reference` (by default the candidate named teacher) is what the others
        are held against, `production` the model that is in use now. The verdict is on the candidate named student,
        else on the first that is neither of these. `artifacts` (name -> path) are listed in the report. Raises
        InputError where a case was trained on or a recorded candidate misses one, and ContractMismatchError where it
        answered another prompt.
        """
        self_test(self.role, self._metric)
        reference = reference or (_TEACHER if _TEACHER in candidates else None)
        check_names(candidates, reference, production)
        rules, gate = self._rules(reference)  # a rule that is mistyped is told before anybody is asked
        held_out = held_out_cases(
            cases,
            candidates,
            reference,
            self.role,
            subset=self._subset,
            watch=self._watch,
            train_path=self._train_path,
        )
        answers = self._answers(candidates, held_out)
        results = self._rated(answers, reference, production, rules.margin)
        if self._judged_by is not None and reference is not None:
            results = self._with_judgements(results, answers, reference, self._judged_by)
        report = self._report(
            held_out,
            results,
            rules,
            gate,
            reference=reference,
            production=production,
            artifacts=artifacts or {},
            candidates=candidates,
            cases=cases,
        )
        self._write(report, _scored(answers, results))
        return report

    # --- completions ----------------------------------------------------------------------------

    def _answers(self, candidates: Mapping[str, Candidate], cases: list[Concept]) -> dict[str, list[Tries]]:
        """Every candidate's answers, kept as completions. What can be refused is refused before the first call."""
        answers = {
            name: recorded_answers(name, candidate, cases, self.role)
            for name, candidate in candidates.items()
            if not isinstance(candidate, ProviderSettings)
        }
        live = {name: one for name, one in candidates.items() if isinstance(one, ProviderSettings)}
        if live:
            with Journal(self._folder / "journal.sqlite") as journal:
                asking = CandidateAsking(
                    self.role,
                    journal,
                    generation=self._generation,
                    concurrency=self._concurrency,
                    tries=self._tries,
                    interleaved=self._interleaved,
                    guaranteed_valid=self._guaranteed_valid,
                    log_path=self._log_path,
                    retries=self._retries,
                )
                answers |= asking.ask(live, cases)
        answers = {name: answers[name] for name in candidates}
        for name, found in answers.items():
            write_jsonl(self._completions_path(name), (one for tries in found for one in tries.answers))
        return answers

    def _completions_path(self, name: str) -> Path:
        return self._folder / f"{name}.completions.jsonl"

    # --- scores ---------------------------------------------------------------------------------

    def _rated(
        self, answers: Mapping[str, list[Tries]], reference: str | None, production: str | None, margin: float
    ) -> dict[str, CandidateResult]:
        """The figures of all candidates, the reference's first, since the others are held against it."""
        measure: dict[str, tuple[str, CaseResult]] = {}
        results: dict[str, CandidateResult] = {}
        for name in sorted(answers, key=lambda name: name != reference):
            cases = self._cases_rated(name, answers[name], measure)
            firsts = [tries.first for tries in answers[name]]
            results[name] = candidate_result(name, firsts, cases)
            if name == reference:
                measure = {case.concept_id: (one.text, case) for one, case in zip(firsts, cases, strict=True)}
        scores = {
            name: {case.concept_id: counted(case.score) for case in result.results} for name, result in results.items()
        }
        differences = compare(scores, reference, margin=margin, seed=self._seed) if reference else {}
        against, used = results.get(reference or ""), results.get(production or "")
        return {
            name: results[name].model_copy(
                update={
                    "difference": differences.get(name),
                    "slices": slices_of(results[name], against, used),
                    "clusters": clusters_of(results[name], against if name != reference else None),
                }
            )
            for name in answers
        }

    def _cases_rated(
        self, name: str, answers: Sequence[Tries], measure: Mapping[str, tuple[str, CaseResult]]
    ) -> list[CaseResult]:
        def item(tries: Tries) -> Answered:
            concept_id = tries.first.concept.concept_id
            text, case = measure.get(concept_id, (None, None))
            return Answered(tries, concept_id in self._watch, text, case.score if case else None)

        found = []
        with progress(f"Scoring {name}", len(answers), "answers") as advance:
            for case in looked_at(map(item, answers), self._rater.rate, workers=self._workers):
                found.append(case)
                advance()
        return found

    def _with_judgements(
        self,
        results: Mapping[str, CandidateResult],
        answers: Mapping[str, list[Tries]],
        reference: str,
        settings: ProviderSettings,
    ) -> dict[str, CandidateResult]:
        found = judge_answers(
            {name: [tries.first for tries in given] for name, given in answers.items()},
            reference,
            settings,
            self.role,
            journal=self._folder / "judge.sqlite",
            concurrency=self._concurrency,
            log_path=self._log_path,
            retries=self._retries,
        )
        return {name: one.model_copy(update={"judgement": found.get(name)}) for name, one in results.items()}

    # --- report ---------------------------------------------------------------------------------

    def _rules(self, reference: str | None) -> tuple[GateRules, str]:
        if isinstance(self._gate, GateRules):
            return self._gate, "given"
        name = str(self._gate or ("production" if reference else "basic"))
        return read_gate(name), name

    def _report(
        self,
        held_out: list[Concept],
        results: Mapping[str, CandidateResult],
        rules: GateRules,
        gate: str,
        *,
        reference: str | None,
        production: str | None,
        artifacts: Mapping[str, str],
        candidates: Mapping[str, Candidate],
        cases: Cases,
    ) -> EvaluationReport:
        kept = {f"completions of {name}": str(self._completions_path(name)) for name in results}
        asked = any(isinstance(candidate, ProviderSettings) for candidate in candidates.values())
        report = EvaluationReport(
            role=self.role.name,
            contract=self.role.contract,
            cases=len(held_out),
            labels=dict(sorted(Counter(case.planted_label or "not planted" for case in held_out).items())),
            candidates=tuple(results.values()),
            verdict=judge(
                results,
                rules=rules,
                gate=gate,
                min_valid_share=self._min_valid_share,
                reference=reference,
                production=production,
            ),
            generation=self._generation,
            created_at=now(),
            artifacts={**artifacts, **kept, **self._report_files()},
            student_digest=file_digest(candidates.get(judged_name(candidates, reference, production) or "")),
            reference=reference,
            production=production,
            tiers=dict(sorted(Counter(case.tier for case in held_out).items())),
            watch=tuple(case.concept_id for case in held_out if case.concept_id in self._watch),
            concurrency=self._concurrency,
            interleaved=self._interleaved if asked else None,
            guaranteed_valid=self._guaranteed_valid and asked,
            seed=self._seed,
            meaning_by=self._meaning.name if self._meaning and reference else None,
            digests=source_digests(candidates, cases=cases, gate=self._gate),
        )
        report = report.model_copy(update={"projections": projections(report, self._works)})
        return report.model_copy(
            update={"observations": observations(report), "recommendations": recommendations(report)}
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


def _scored(
    answers: Mapping[str, Sequence[Tries]], results: Mapping[str, CandidateResult]
) -> dict[str, list[Completion]]:
    """The first tries with their scores."""
    return {
        name: [
            tries.first.model_copy(update={"score": case.score})
            for tries, case in zip(answers[name], results[name].results, strict=True)
        ]
        for name in answers
    }
