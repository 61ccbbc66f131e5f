"""The closing parts of a plan: figures with their sources, a projection that says so, and a checklist that is true."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from reports import completions, example_completions, hostile, report_of

from haiku import haiku
from po_distill.artifacts import digest_file, write_json, write_jsonl
from po_distill.commands.smoke import export
from po_distill.errors import InputError, SettingsError
from po_distill.records import EvaluationReport, GGUFFile, OllamaPackage, Promotion, RunManifest
from po_distill.reporting.next_steps import Promotions, StudentVersion, next_steps
from po_distill.reporting.plan import MIPROv2Run, duration, miprov2_run, render_plan, timing

SNAPSHOT = Path(__file__).parent / "snapshots" / "plan.md"
FOLDER = Path("artifacts/models/haiku_student_v1")
REPORT = FOLDER / "evaluation.json"
DIGEST, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
NAME = "haiku-student-v1"
STAGES = ("train", "merge", "package")


def package() -> OllamaPackage:
    gguf = GGUFFile(path=str(FOLDER / f"{NAME}.Q4_0.gguf"), quantization="q4_0", architecture="llama", size_bytes=1,
                    tensors={}, digest=DIGEST)  # fmt: skip
    return OllamaPackage(name=NAME, path=str(FOLDER), gguf=gguf, modelfile_path="Modelfile", num_ctx=8192, stops=(),
                         contract=None, create_command=f"ollama create {NAME} -f {FOLDER}/Modelfile")  # fmt: skip


def manifest(*stages: str) -> RunManifest:
    records: dict[str, Any] = {stage: {} for stage in stages}
    if "package" in stages:
        records["package"] = package().model_dump(mode="json")
    return RunManifest(version=FOLDER.name, po_distill="1", stages=records, created_at="now")


def version(*stages: str) -> StudentVersion:
    return StudentVersion(FOLDER, manifest(*stages), package() if "package" in stages else None)


def promotion(**changes: Any) -> Promotion:
    fields = {"number": 3, "action": "promote", "at": "2026-11-24T09:00:00+00:00", "config": "config.yaml",
              "role": "haiku", "provider": "ollama", "model": NAME, "before": {}, "after": {}, "digest_before": DIGEST,
              "digest_after": DIGEST, "package_digest": DIGEST}  # fmt: skip
    return Promotion.model_validate({**fields, **changes})


def promotions(*lines: Promotion) -> Promotions:
    return Promotions(Path("config.yaml"), Path("promotions.jsonl"), lines)


def plan(
    report: EvaluationReport | None = None,
    run: MIPROv2Run | None = None,
    *,
    digest: str | None = DIGEST,
    student: StudentVersion | None = None,
    promoted: Promotions | None = None,
) -> str:
    report = report or report_of(example_completions())
    report = report.model_copy(update={"student_digest": digest})
    steps = next_steps(report, REPORT, version=student, promotions=promoted)
    return render_plan(report, REPORT, steps, run)


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}")[1].split("\n## ")[0]


def boxes(text: str) -> list[bool]:
    return [mark == "x" for mark in re.findall(r"^- \[(.)\] ", text, re.MULTILINE)]


def test_the_plan_is_as_it_was():
    """After a wanted change: PO_DISTILL_UPDATE_SNAPSHOTS=1 pytest, and read the difference."""
    text = plan(run=miprov2_run(20, 100), student=version(*STAGES), promoted=promotions(promotion()))
    if os.environ.get("PO_DISTILL_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8")


# --- figures ----------------------------------------------------------------------------------------


def test_every_section_with_figures_names_the_file_that_they_are_from():
    text = plan(run=miprov2_run(20, 100))
    for title in ("Benefits", "A MIPROv2 run, projected", "Verdict"):
        assert str(REPORT) in section(text, title)


def test_every_figure_of_a_stand_in_says_so_and_is_compared_with_nothing():
    text = plan(run=MIPROv2Run(100, "given"))
    rows = re.findall(r"^\| (?!Calls|-|Task)[^|]+\|([^|]+)\|.*\|$", section(text, "Benefits"), re.MULTILINE)
    assert len(rows) == 7  # with the head
    assert all("(stand-in)" in teacher for teacher in rows)
    assert "Against teacher (stand-in): no comparison" in text
    assert "| teacher | 48.0 s (stand-in) | 1 h 20 min (stand-in) |" in text
    assert "The figures of a teacher that is a model" in section(text, "What is missing")
    assert "stand-in" not in plan(report_of({name: example_completions()[name] for name in ("base", "student")}))


def test_a_base_that_was_a_stand_in_is_told_at_the_verdict():
    given = example_completions()
    given["base"] = completions("rules", {}, seconds=0.5, stand_in=True)
    assert "Rules answered in place of a model: base (stand-in)." in section(plan(report_of(given)), "Verdict")


def test_seconds_that_nobody_noted_are_missing_and_no_zeros():
    given = example_completions()
    given["teacher"] = completions("gemini", {}, seconds=0.0)
    text = plan(report_of(given), MIPROv2Run(100, "given"))
    assert "| Seconds per call, median | missing | 2 | 0.016 |" in text
    assert "| Calls that were timed | 0 of 7 | 7 of 7 | 7 of 7 |" in text
    assert "| teacher | missing | missing |" in text
    assert "Against teacher" not in text
    assert "The seconds of the teacher: its calls were not timed." in section(text, "What is missing")


def test_calls_without_a_time_are_left_out_of_the_times_and_counted():
    given = example_completions()
    given["base"] = [
        one.model_copy(update={"usage": one.usage.model_copy(update={"latency_s": 0.0})}) if number < 3 else one
        for number, one in enumerate(given["base"])
    ]
    report = report_of(given)
    found = timing(report.candidate("base"))
    assert found is not None
    assert (found.timed, found.mean_s, found.median_s) == (4, 2.75, 2.75)
    assert "| Calls that were timed | 7 of 7 | 4 of 7 | 7 of 7 |" in plan(report)


def test_figures_that_do_not_exist_are_said_to_be_missing():
    text = plan(report_of({"student": example_completions()["student"]}))
    missing = section(text, "What is missing")
    assert "The teacher: it is not in the report." in missing
    assert "The base: it is not in the report." in missing
    assert "The time of a MIPROv2 run: its number of calls is not known." in missing
    assert "MIPROv2 run, projected" not in text
    blind = [one.model_copy(update={"concept": one.concept.model_copy(update={"planted_label": None})})
             for one in example_completions()["student"]]  # fmt: skip
    assert "| Verdict balanced accuracy | missing (no planted classes) |" in plan(report_of({"student": blind}))


def test_a_report_of_strangers_has_no_benefits_to_show():
    text = plan(report_of({"somebody": example_completions()["base"]}), MIPROv2Run(1, "given"))
    assert "has neither a student nor a teacher or base to show" in section(text, "Benefits")
    assert "The student: it is not in the report." in text


@pytest.mark.parametrize(("base_s", "says"), [(0.5, "125 times as fast"), (0.001, "0.25 times as fast")])
def test_the_student_is_compared_whichever_is_faster(base_s: float, says: str):
    given = {"base": completions("b", {}, seconds=base_s), "student": example_completions()["student"]}
    assert says in plan(report_of(given))


def test_the_verdict_is_told_as_it_is():
    bad = {"student": completions("s", dict.fromkeys(range(7), haiku("autumn", lines=1)), seconds=1.0)}
    text = plan(report_of(bad))
    assert "## Verdict: not accepted" in text
    assert "- failed: the student's balanced accuracy" in text


def test_text_of_other_people_is_shown_as_it_is_and_does_nothing():
    report, _ = hostile()
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(plan(report))
    assert "<script" not in html
    assert "<img" not in html
    assert "<a " not in html
    assert html.count("<h1>") == 1


# --- the projection -----------------------------------------------------------------------------------


def test_the_projection_shows_its_formula_and_says_that_it_is_none_of_the_measured():
    text = section(plan(run=miprov2_run(20, 100)), "A MIPROv2 run, projected")
    assert "Not measured, but computed: time = calls of the task model x mean seconds per call" in text
    assert "1,200 (20 trials x 35 cases of a minibatch + (20 // 5 + 1) full evaluations x 100 validation cases)" in text
    assert "| student | 0.016 s | 19.2 s |" in text


@given(st.integers(1, 500), st.integers(1, 2000), st.integers(0, 200), st.integers(1, 50))
def test_the_calls_of_a_run_are_those_of_its_trials_one_by_one(
    trials: int, validation: int, minibatch: int, full_eval_steps: int
):
    if minibatch > validation:
        with pytest.raises(SettingsError, match=f"minibatch of {minibatch}"):
            miprov2_run(trials, validation, minibatch=minibatch, full_eval_steps=full_eval_steps)
        return
    calls = 0 if minibatch == 0 else validation  # the program as it is, evaluated first
    for trial in range(1, trials + 1):
        calls += minibatch or validation
        calls += validation if minibatch and trial % full_eval_steps == 0 else 0
    run = miprov2_run(trials, validation, minibatch=minibatch, full_eval_steps=full_eval_steps)
    assert run.calls == calls
    assert eval(re.sub(r"[a-z]+( of a [a-z]+| [a-z]+)?", "", run.told.replace(" x ", " * "))) == calls


@pytest.mark.parametrize(
    ("spent_s", "says"),
    [(0.0, "0 s"), (0.016, "0.016 s"), (59.9, "59.9 s"), (60, "1 min"), (90, "1 min 30 s"), (3600, "1 h"),
     (7500, "2 h 5 min"), (3629, "1 h"), (86400 * 3 + 4 * 3600, "3 d 4 h")],
)  # fmt: skip
def test_a_time_is_told_in_its_two_largest_units(spent_s: float, says: str):
    assert duration(spent_s) == says


@given(st.floats(60, 1e8))
def test_a_told_time_is_short_of_the_time_by_less_than_its_smaller_unit(spent_s: float):
    units = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    told = re.findall(r"(\d+) (\w+)", duration(spent_s))
    total = sum(int(number) * units[unit] for number, unit in told)
    below = {"d": 3600, "h": 60, "min": 1}[told[0][1]]
    assert -0.5 <= spent_s - total < below + 0.5


# --- the checklist ------------------------------------------------------------------------------------


def test_a_step_is_ticked_only_where_a_file_shows_that_it_is_done():
    assert boxes(plan()) == [False] * 8
    assert boxes(plan(student=version("train", "merge"))) == [True, True, *[False] * 6]
    assert boxes(plan(student=version(*STAGES))) == [True] * 4 + [False] * 4
    done = plan(student=version(*STAGES), promoted=promotions(promotion()))
    assert boxes(done) == [True, True, True, True, False, True, False, False]
    assert f"done: {FOLDER}/manifest.json, stage train" in done
    assert "done: promotions.jsonl, promotion 3 of 2026-11-24" in done


def test_a_verdict_on_another_file_ticks_nothing():
    for digest, says in ((OTHER, "judges the GGUF 222222222222, the package is 111111111111"), (None, "does not say")):
        text = plan(student=version(*STAGES), digest=digest)
        assert boxes(text)[3] is False
        assert says in text
    bad = {"student": completions("s", {}, seconds=1.0), "base": completions("b", {}, seconds=1.0)}
    text = plan(report_of(bad), student=version(*STAGES))
    assert boxes(text)[3] is False
    assert "does not accept the student" in text


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], ""),
        ([promotion(role="architect")], ""),
        ([promotion(), promotion(number=4, model="v2", package_digest=OTHER)], "has v2 promoted, the GGUF 2222"),
        ([promotion(package_digest=None)], f"has {NAME} promoted, an unknown GGUF"),
    ],
)
def test_a_promotion_of_something_else_ticks_nothing(lines: list[Promotion], says: str):
    text = plan(student=version(*STAGES), promoted=promotions(*lines))
    assert boxes(text)[5] is False
    assert says in text


def test_a_forced_promotion_says_so():
    text = plan(student=version(*STAGES), promoted=promotions(promotion(forced="a trial")))
    assert "forced: a trial" in text


def test_each_step_has_a_command_to_copy():
    html = MarkdownIt("commonmark").render(plan(student=version(*STAGES)))
    found = re.findall(r'<code class="language-bash">(.*)\n</code>', html)
    assert found == [
        f"po-distill train --output {FOLDER}",
        f"po-distill merge --adapter {FOLDER}/adapter",
        f"po-distill package --model {FOLDER}",
        f"po-distill evaluate --model {FOLDER} --gate",
        f"ollama create {NAME} -f {FOLDER}/Modelfile",
        f"po-distill promote --config config.yaml --role haiku --model {NAME}",
        "po-distill smoke --config config.yaml --role haiku",
        f"make haiku HAIKU_MODEL={NAME}",
    ]


# --- the command --------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a student that is packaged, accepted and promoted."""
    monkeypatch.chdir(tmp_path)
    write_json(FOLDER / "manifest.json", manifest(*STAGES))
    write_json(REPORT, report_of(example_completions(), student_digest=DIGEST))
    Path("config.yaml").write_text("roles: {}\n")
    write_jsonl("promotions.jsonl", [promotion(digest_after=digest_file("config.yaml"))])
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(export, ["plan", *arguments])


def test_the_command_writes_what_the_files_show(place: Path):
    result = run("--report", str(REPORT), "--trials", "20", "--validation", "100", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["path"], found["accepted"], found["miprov2_calls"]) == ("docs/plan.md", True, 1200)
    assert [step["done"] for step in found["steps"]] == [True, True, True, True, False, True, False, False]
    assert Path("docs/plan.md").read_text() == SNAPSHOT.read_text(encoding="utf-8")


def test_the_command_tells_people_what_is_open(place: Path):
    result = run("--report", str(REPORT), "--calls", "50", "--output", "p.md")
    assert result.stdout.splitlines()[0] == "Plan: p.md"
    assert "  open: Ask it one concept as production does" in result.stdout
    assert "Calls of the task model: 50 (given: --calls 50)." in Path("p.md").read_text()


def test_a_config_that_was_edited_since_it_was_promoted_is_told_of(place: Path):
    Path("config.yaml").write_text("roles: {haiku: {}}\n")
    assert run("--report", str(REPORT)).exit_code == 0
    assert "config.yaml was edited by hand since" in Path("docs/plan.md").read_text()


def test_a_report_elsewhere_finds_the_version_by_its_digest(place: Path):
    REPORT.rename("evaluation.json")
    done = [True, True, True, True, False, True, False, False]
    assert [step["done"] for step in json.loads(run("--report", "evaluation.json", "--json").stdout)["steps"]] == done
    named = run("--report", "evaluation.json", "--package", str(FOLDER), "--json")
    assert [step["done"] for step in json.loads(named.stdout)["steps"]] == done


def test_a_plain_report_and_no_config_leave_the_steps_open(place: Path):
    write_json("evaluation.json", report_of(example_completions()))
    Path("config.yaml").unlink()
    found = json.loads(run("--report", "evaluation.json", "--json").stdout)
    assert [step["done"] for step in found["steps"]] == [False] * 8
    assert found["miprov2_calls"] is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--calls", "9", "--trials", "1"], "not both"),
        (["--trials", "9"], "--trials and --validation go together"),
        (["--calls", "0"], "0 is not in the range"),
    ],
)
def test_half_a_number_of_calls_is_wrong_usage(place: Path, arguments: list[str], says: str):
    result = run("--report", str(REPORT), *arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert not Path("docs").exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (["--report", "gone.json"], InputError, "gone.json does not exist"),
        (["--report", "config.yaml"], InputError, "config.yaml is not JSON"),
        (["--report", str(REPORT), "--package", "docs"], InputError, "docs has no manifest.json"),
        (["--report", str(REPORT), "--trials", "2", "--validation", "9"], SettingsError, "MIPROv2 refuses that"),
    ],
)
def test_what_cannot_be_read_is_an_error_and_writes_nothing(
    place: Path, arguments: list[str], kind: type[Exception], says: str
):
    error = run(*arguments).exception
    assert isinstance(error, kind)
    assert says in str(error)
    assert not Path("docs").exists()
