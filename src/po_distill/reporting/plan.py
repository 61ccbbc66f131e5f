"""The closing parts of a distillation plan as Markdown: what was gained, in figures, and what is left to do."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from po_distill.errors import SettingsError
from po_distill.records import CandidateResult, EvaluationReport
from po_distill.reporting.figures import quantile
from po_distill.reporting.foreign_text import fenced, for_markdown
from po_distill.reporting.markdown import seconds, share, title_of
from po_distill.reporting.next_steps import Step

STUDENT = "student"
_BEFORE = ("teacher", "base")  # who did the work before, the likelier first
_MISSING = "missing"


class MIPROv2Run(NamedTuple):
    """A run of DSPy's optimizer, by its calls of the task model."""

    calls: int
    told: str  # where the number comes from, its formula included


class Timing(NamedTuple):
    """Seconds of a candidate's calls, as far as they were timed."""

    median_s: float
    p95_s: float
    mean_s: float
    timed: int  # cases


def miprov2_run(trials: int, validation: int, *, minibatch: int = 35, full_eval_steps: int = 5) -> MIPROv2Run:
    """The calls of the task model of a MIPROv2 run over a program of one call, as DSPy itself estimates them.

    `validation` is the number of validation cases, `minibatch` that of a trial's (0: every trial takes all), and after
    every `full_eval_steps` trials all cases are evaluated. The formula is that of `MIPROv2._estimate_lm_calls` in DSPy
    3; the calls that gather demonstrations and propose instructions are not in it. Raises SettingsError where the
    minibatch is larger than the validation set, as MIPROv2 does.
    """
    if minibatch > validation:
        raise SettingsError(
            f"A minibatch of {minibatch} does not fit into {validation} validation cases; MIPROv2 refuses that.",
            "Give --minibatch a smaller number, or 0: every trial takes all cases then.",
        )
    if minibatch == 0:
        return MIPROv2Run(trials * validation, f"{trials} trials x {validation} validation cases")
    full = trials // full_eval_steps + 1
    return MIPROv2Run(
        trials * minibatch + full * validation,
        f"{trials} trials x {minibatch} cases of a minibatch + ({trials} // {full_eval_steps} + 1) full evaluations x "
        f"{validation} validation cases",
    )


def timing(candidate: CandidateResult) -> Timing | None:
    """The candidate's seconds per call; None where no call was timed, as in recordings without times."""
    times = [result.usage.latency_s for result in candidate.results if result.usage.latency_s > 0]
    if not times:
        return None
    return Timing(quantile(times, 0.5), quantile(times, 0.95), statistics.fmean(times), len(times))


def render_plan(report: EvaluationReport, report_path: Path, steps: Sequence[Step], run: MIPROv2Run | None) -> str:
    """The parts as one Markdown document. Each figure's file is named; one that is not known is said to be missing."""
    sections = (
        f"# Distillation of the role {for_markdown(report.role)}: benefits and next steps",
        _benefits(report, report_path),
        _faster(report, report_path),
        _projection(report, report_path, run),
        _verdict(report, report_path),
        _missing(report, run),
        _checklist(steps),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def duration(spent_s: float) -> str:
    """A time in the two largest units that it has: 3 d 4 h, 2 h 5 min, 7 min 30 s, 12.3 s."""
    if spent_s < 60:
        return f"{seconds(spent_s)} s"
    whole = round(spent_s)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    place = next(number for number, (_, size) in enumerate(units) if whole >= size)
    (unit, size), (below, less) = units[place], units[place + 1]
    rest = whole % size // less
    return f"{whole // size} {unit}" + (f" {rest} {below}" if rest else "")


# --- what was gained ------------------------------------------------------------------------------


def _shown(report: EvaluationReport) -> list[CandidateResult]:
    """Before and after: teacher, base, student, as far as the report has them."""
    by_name = {candidate.name: candidate for candidate in report.candidates}
    return [by_name[name] for name in (*_BEFORE, STUDENT) if name in by_name]


def _benefits(report: EvaluationReport, path: Path) -> str:
    shown = _shown(report)
    if not shown:
        return f"## Benefits\n\n{_file(path)} has neither a student nor a teacher or base to show."
    times = [timing(candidate) for candidate in shown]
    rows = [
        ["Seconds per call, median", *_seconds(shown, [t and t.median_s for t in times])],
        ["Seconds per call, 95th percentile", *_seconds(shown, [t and t.p95_s for t in times])],
        ["Seconds per call, mean", *_seconds(shown, [t and t.mean_s for t in times])],
        ["Calls that were timed", *(f"{t.timed if t else 0} of {c.cases}" for c, t in zip(shown, times, strict=True))],
        ["Metric (an invalid answer counts 0)", *(_marked(c, f"{c.score_mean:.3f}") for c in shown)],
        ["Valid answers", *(_marked(c, share(c.valid_share, c.cases)) for c in shown)],
        ["Verdict balanced accuracy", *(_marked(c, _accuracy(c)) for c in shown)],
    ]
    titles = [f"{'after' if c.name == STUDENT else 'before'}: {for_markdown(title_of(c))}" for c in shown]
    models = "\n".join(f"- {for_markdown(title_of(c))}: {for_markdown(c.model)}." for c in shown)
    return (
        f"## Benefits\n\nEvery figure of this table is from {_file(path)}, measured {for_markdown(report.created_at)} "
        f"on {report.cases} held-out cases; which machine it was is not noted there.\n\n"
        f"{_table(['', *titles], rows)}\n\n{models}"
    )


def _faster(report: EvaluationReport, path: Path) -> str:
    """How many times as fast the student is as each that can be compared."""
    after = _student(report)
    student = timing(after) if after else None
    if after is None or student is None:
        return ""
    lines = []
    for candidate in _shown(report):
        before = timing(candidate)
        if candidate.name == STUDENT or before is None:
            continue
        name = for_markdown(title_of(candidate))
        if candidate.stand_in or after.stand_in:
            lines.append(f"- Against {name}: no comparison, as rules answered in place of a model.")
        else:
            took = f"{seconds(student.median_s)} s in place of {seconds(before.median_s)} s"
            lines.append(f"- Against {name}: {took} a call, {_times(before.median_s / student.median_s)} as fast.")
    return f"By the medians above, from {_file(path)}:\n\n" + "\n".join(lines) if lines else ""


def _projection(report: EvaluationReport, path: Path, run: MIPROv2Run | None) -> str:
    if run is None:
        return ""
    rows = []
    for candidate in _shown(report):
        measured = timing(candidate)
        total = duration(run.calls * measured.mean_s) if measured else _MISSING
        mean = f"{seconds(measured.mean_s)} s" if measured else _MISSING
        rows.append([for_markdown(candidate.name), *(_marked(candidate, text) for text in (mean, total))])
    return (
        "## A MIPROv2 run, projected\n\nNot measured, but computed: time = calls of the task model x mean seconds per "
        f"call, one call after another.\n\n- Calls of the task model: {run.calls:,} ({run.told}).\n"
        f"- Mean seconds per call: from {_file(path)}, by the table above; there the prompts hold no demonstrations.\n"
        "- Not in it: calls that gather demonstrations, and calls of the prompt_model, which proposes instructions.\n\n"
        + _table(["Task model", "Mean seconds per call", "Projected time"], rows)
    )


def _verdict(report: EvaluationReport, path: Path) -> str:
    outcome = "accepted" if report.verdict.passed else "not accepted"
    rules = [for_markdown(c.name) for c in _shown(report) if c.stand_in and c.name != "teacher"]
    note = f" Rules answered in place of a model: {', '.join(rules)} (stand-in)." if rules else ""
    reasons = "\n".join(f"- {for_markdown(reason, longest=None)}" for reason in report.verdict.reasons)
    return f"## Verdict: {outcome}\n\nFrom {_file(path)}.{note}\n\n{reasons}"


def _missing(report: EvaluationReport, run: MIPROv2Run | None) -> str:
    """What somebody would look for here and does not find, and how it comes about."""
    by_name = {candidate.name: candidate for candidate in report.candidates}
    ways = {"teacher": "--teacher FILE", "base": "--base GGUF", STUDENT: "--model FOLDER"}
    lines = []
    for name, option in ways.items():
        candidate = by_name.get(name)
        if candidate is None:
            lines.append(f"The {name}: it is not in the report. `po-distill evaluate` takes it with `{option}`.")
        elif timing(candidate) is None:
            lines.append(
                f"The seconds of the {name}: its calls were not timed. Record it with `latency_s` in each row."
            )
        elif candidate.stand_in and name != STUDENT:
            lines.append(f"The figures of a {name} that is a model: rules answered in its place.")
    if run is None:
        lines.append(
            "The time of a MIPROv2 run: its number of calls is not known. Give `--calls`, or `--trials` and "
            "`--validation`."
        )
    return "## What is missing\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


# --- what is left to do ---------------------------------------------------------------------------


def _checklist(steps: Sequence[Step]) -> str:
    lines = []
    for step in steps:
        mark, told = ("x", f"done: {step.evidence}") if step.evidence else (" ", step.note)
        behind = f" ({for_markdown(told, longest=None)})" if told else ""
        block = "\n".join(f"  {line}" for line in fenced(step.command, "bash").splitlines())
        lines.append(f"- [{mark}] {for_markdown(step.what, longest=None)}{behind}\n\n{block}")
    return "## Next steps\n\n" + "\n\n".join(lines)


# --- cells ----------------------------------------------------------------------------------------


def _student(report: EvaluationReport) -> CandidateResult | None:
    return next((candidate for candidate in report.candidates if candidate.name == STUDENT), None)


def _seconds(shown: Iterable[CandidateResult], values: Iterable[float | None]) -> list[str]:
    pairs = zip(shown, values, strict=True)
    return [_marked(candidate, _MISSING if value is None else seconds(value)) for candidate, value in pairs]


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 100 else f"{ratio:.3g} times"


def _accuracy(candidate: CandidateResult) -> str:
    value = candidate.verdict_balanced_accuracy
    return f"{_MISSING} (no planted classes)" if value is None else f"{value:.3f}"


def _marked(candidate: CandidateResult, figure: str) -> str:
    """A figure, and that it is of a stand-in."""
    return f"{figure} (stand-in)" if candidate.stand_in else figure


def _file(path: Path) -> str:
    return for_markdown(str(path), longest=None)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ruler, *rows))
