"""The command line as a user meets it: in processes of its own, in a folder of its own."""

import json
import os
import resource
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from haiku import CHEAP, PAID
from po_distill.artifacts import write_jsonl
from po_distill.roles.product_owner.role import ProductOwnerRole

CONCEPTS = ProductOwnerRole().generate_concepts(30, seed=12)
ONE = CONCEPTS[0].model_dump_json() + "\n"


def run(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "po_distill", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120, **options)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_concepts_then_dataset_with_the_plans_flags(tmp_path: Path) -> None:
    made = run(tmp_path, "concepts", "--count", "30", "--seed", "3", "--output-path", "c.jsonl", "--json")
    assert json.loads(made.stdout)["labels"] == {"aligned": 10, "misaligned": 10, "needs_adjustment": 10}
    arguments = ["--input-path", "c.jsonl", "--output-path", "out/d.jsonl", "--batch-size", "5", "--max-records", "20"]
    built = run(tmp_path, "dataset", *arguments, "--provider", "offline", "--min-score", "0.9", "--json")
    assert built.returncode == 0, built.stderr
    record = json.loads(built.stdout)
    assert record["inputs"] == 20 == sum(record["counts"].values())
    completions = (tmp_path / "out/d.completions.jsonl").read_text().splitlines()
    assert len(completions) == 20
    assert all(json.loads(line)["stand_in"] for line in completions)


def test_a_second_dataset_run_asks_no_concept_again(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c.jsonl", CONCEPTS)
    for _ in range(2):
        assert run(tmp_path, "dataset", "--input", "c.jsonl", "--output", "d.jsonl").returncode == 0
    assert len(next((tmp_path / "logs/distillation").glob("teacher_calls_*.log")).read_text().splitlines()) == 30


@pytest.mark.parametrize(
    ("content", "arguments", "says", "fix"),
    [
        (None, ["dataset", "--input", "none.jsonl"], "none.jsonl does not exist", "Check the path"),
        ("", ["dataset", "--input", "f"], "f is empty", "at least one"),
        ('{"concept": "x"}\n', ["dataset", "--input", "f"], "line 1: 'requirements_yaml' is missing", "A row needs"),
        ('{"requirements_yaml": "x"}\n', ["dataset", "--input", "f"], "line 1: 'concept' is missing", "A row needs"),
        (ONE + '{"b"\n', ["dataset", "--input", "f"], "line 2: not JSON", "Correct or delete"),
        (
            json.dumps({"concept": "x", "requirements_yaml": "a: &a [*a]"}),
            ["dataset", "--input", "f"],
            "aliases",
            "Write the repeated parts out",
        ),
        (ONE, ["dataset", "--input", "f", "--provider", "ofline"], "no provider named", "'offline'"),
        ("x", ["dataset", "--input", "f", "--role", "owner"], "no role named 'owner'", "product_owner"),
        ("x", ["dataset", "--input", "f", "--contract", "xml"], "no prompt contract 'xml'", "fenced, tagged, json"),
        ("x", ["dataset", "--input", "f", "--prompt", "gone.md"], "gone.md does not exist", "Check the path"),
        ("trian: {}\n", ["run", "f"], "no setting 'trian'", "'train'"),
        (ONE, ["train", "--data", "f", "--base", "smolm2-135m-instruct"], "'smolm2-135m-instruct'", "smollm2-135m"),
        (None, ["evaluate", "--model", ".", "--data", "none.jsonl"], "holds 0 GGUF files", "po-distill package"),
    ],
)  # fmt: skip
def test_bad_input_is_a_problem_with_a_fix_and_leaves_nothing(
    tmp_path: Path, content: str | None, arguments: list[str], says: str, fix: str
) -> None:
    if content is not None:
        (tmp_path / "f").write_text(content)
    result = run(tmp_path, *arguments)
    assert result.returncode == 1
    assert says in result.stderr
    assert fix in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not any(name.startswith(("artifacts", "docs")) for name in files(tmp_path))


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    for arguments in (["--debug", "dataset", "--input", "x"], ["dataset", "--input", "x", "--debug"]):
        assert "Traceback" in run(tmp_path, *arguments).stderr


def test_wrong_usage_is_exit_code_two_and_names_the_nearest(tmp_path: Path) -> None:
    result = run(tmp_path, "datset")
    assert result.returncode == 2
    assert "Did you mean 'dataset'?" in result.stderr
    assert run(tmp_path, "train", "--rank", "many").returncode == 2


def test_a_disk_that_is_full_is_an_error_that_says_so(tmp_path: Path) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    result = run(tmp_path, "concepts", "--count", "200", "--output", "c.jsonl", preexec_fn=small_files)
    assert result.returncode == 1
    assert "c.jsonl cannot be written: File too large" in result.stderr
    assert files(tmp_path) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_says_so_and_leaves_no_half_file(tmp_path: Path, number: signal.Signals) -> None:
    write_jsonl(tmp_path / "c.jsonl", ProductOwnerRole().generate_concepts(1500, seed=1))
    before = files(tmp_path)
    command = [sys.executable, "-m", "po_distill", "dataset", "--input", "c.jsonl", "--output", "d.jsonl"]
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=_listen)
    journal = tmp_path / "logs/distillation/teacher_journal.sqlite"
    deadline = time.monotonic() + 60
    while not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "goes on from there" in said
    assert "Traceback" not in said
    assert {name for name in files(tmp_path) - before if not name.startswith("logs")} == set()


def test_help_is_quick_and_every_command_has_it(tmp_path: Path) -> None:
    listed = run(tmp_path, "--help").stdout
    for name in (
        "quickstart",
        "run",
        "concepts",
        "dataset",
        "train",
        "merge",
        "package",
        "evaluate",
        "journal",
        "plugins",
        "doctor",
    ):
        assert f"\n  {name} " in listed
        assert run(tmp_path, name, "--help").stdout.startswith(f"Usage: po-distill {name}")


def test_doctor_names_a_remedy_for_everything_that_is_missing(tmp_path: Path) -> None:
    environment = {**os.environ, "OLLAMA_HOST": "127.0.0.1:9"}
    found = json.loads(run(tmp_path, "doctor", "--json", env=environment).stdout)
    assert {"memory", "disk here", "accelerator", "Ollama server"} <= {check["name"] for check in found["checks"]}
    assert all(check["ok"] or check["remedy"] for check in found["checks"])
    assert not next(check for check in found["checks"] if check["name"] == "Ollama server")["ok"]


# --- the teacher at the command line ------------------------------------------------------------

TESTS = str(Path(__file__).parent)
WITH_TESTS = {**os.environ, "PYTHONPATH": TESTS}
TABLE = f"- {json.dumps(CHEAP.model_dump(mode='json'))}\n"
PAID_ARGUMENTS = ["--provider", PAID, "--model", "cheap-1", "--models-file", "models.yaml"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "c.jsonl", CONCEPTS)
    (tmp_path / "models.yaml").write_text(TABLE)
    return tmp_path


def paid(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(
        folder, "dataset", "--input", "c.jsonl", "--output", "d.jsonl", *PAID_ARGUMENTS, *arguments, env=WITH_TESTS
    )


def journal_of(folder: Path) -> Path:
    return folder / "logs/distillation/teacher_journal.sqlite"


def test_dataset_says_what_was_asked_accepted_and_paid(folder: Path) -> None:
    found = json.loads(paid(folder, "--json", "--free-text").stdout)
    teacher = found["teacher"]
    assert teacher["asked"] == teacher["accepted"] + sum(teacher["rejected"].values()) == 30
    assert teacher["sends"] == 30
    assert teacher["charged_usd"] == pytest.approx(30 * 60_000 / 1e9)
    assert found["inputs"] == 30
    told = paid(folder, "--free-text").stdout
    assert "30 concepts: 30 accepted, 0 rejected" in told
    assert "0 calls, 30 answers from the journal" in told
    assert "$0.0000 in this run, $0.0018 in all runs of the journal" in told


def test_a_dry_run_prints_calls_tokens_and_cost_and_leaves_nothing(folder: Path) -> None:
    before = files(folder)
    plan = json.loads(paid(folder, "--dry-run", "--json").stdout)
    assert (plan["concepts"], plan["to_ask"], plan["unusable"]) == (30, 30, 0)
    assert 0 < plan["cost_usd"] <= plan["worst_cost_usd"]
    told = paid(folder, "--dry-run").stdout
    assert "30 concepts: 30 to ask, 0 in the journal, 0 unusable" in told
    assert "list price cheap-1@2026-09-20" in told
    assert "No price of m is known" in run(
        folder, "dataset", "--input", "c.jsonl", "--provider", PAID, "--model", "m", "--dry-run", env=WITH_TESTS
    ).stdout  # fmt: skip
    assert files(folder) == before


def test_the_budget_stops_the_run_with_an_exit_code_of_its_own_and_more_of_it_goes_on(folder: Path) -> None:
    dear = ("--max-tokens", "4096", "--free-text", "--option", "tokens=[100, 4000]", "--json")  # four cents a call
    stopped = paid(folder, "--budget-usd", "0.13", "--batch-size", "2", *dear)
    assert stopped.returncode == 3, stopped.stderr
    teacher = json.loads(stopped.stdout)["teacher"]
    assert teacher["stopped"] == "budget_reached"
    assert 0 < teacher["charged_usd"] <= 0.13
    assert teacher["rejected"]["budget_reached"] + teacher["accepted"] == 30
    on = paid(folder, "--budget-usd", "5", *dear)
    assert on.returncode == 0, on.stderr
    teacher = json.loads(on.stdout)["teacher"]
    assert (teacher["accepted"], teacher["stopped"]) == (30, None)
    assert teacher["from_journal"] + teacher["sends"] == 30
    told = paid(folder, "--budget-usd", "0.0001", "--temperature", "0.1")
    assert told.returncode == 1
    assert "Raise --budget-usd" in told.stderr


def test_the_journal_is_read_by_commands_of_its_own(folder: Path) -> None:
    assert paid(folder, "--free-text", "--batch-size", "1").returncode == 0
    written = (folder / "d.completions.jsonl").read_bytes()
    found = json.loads(run(folder, "journal", "export", "--output", "again.jsonl", "--json").stdout)
    assert found == {"answers": 30, "completions": 30}
    assert (folder / "again.jsonl").read_bytes() == written
    costs = json.loads(run(folder, "journal", "costs", "--json").stdout)
    assert (costs["sends"], costs["doubtful"]) == (30, 0)
    assert costs["usd"] == pytest.approx(30 * 60_000 / 1e9)
    assert set(costs["by_model"]) == {f"{PAID} cheap-1"}
    assert "30 sends  $0.001800" in run(folder, "journal", "costs").stdout
    (log,) = (folder / "logs/distillation").glob("teacher_calls_*.log")
    whole = log.read_bytes()
    log.write_bytes(whole[:-100])
    rebuild = ["journal", "costs", "--rebuild", "logs/distillation/teacher_calls.log"]
    assert run(folder, *rebuild).returncode == 0
    assert log.read_bytes() == whole
    sound = run(folder, "journal", "verify")
    assert (sound.returncode, "is sound" in sound.stdout) == (0, True)
    with sqlite3.connect(journal_of(folder)) as database:
        database.execute("UPDATE sends SET cost_nanousd = reserved_nanousd + 1 WHERE send_id = 1")
    database.close()
    broken = run(folder, "journal", "verify", "--json")
    assert broken.returncode == 3
    assert json.loads(broken.stdout)["problems"] == ["1 sends that cost more than was reserved for them"]
    missing = run(folder, "journal", "costs", "--journal", "none.sqlite")
    assert missing.returncode == 1
    assert "There is no journal none.sqlite" in missing.stderr
    assert not (folder / "none.sqlite").exists()


def _listen() -> None:
    """As in the foreground, wherever the tests run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _ignore() -> None:
    """As in a shell's background job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def started(folder: Path, *arguments: str, delay_s: float = 0.4, listening: bool = True) -> subprocess.Popen[str]:
    """A dataset run whose calls take a while, with at least four of them in flight."""
    command = [
        *(sys.executable, "-m", "po_distill", "dataset", "--input", "c.jsonl", "--output", "d.jsonl"),
        *(*PAID_ARGUMENTS, "--free-text", "--batch-size", "8", "--option", f"delay_s={delay_s}"),
        *("--option", "ledger=ledger", *arguments),
    ]
    child = subprocess.Popen(
        command,
        cwd=folder,
        env=WITH_TESTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_listen if listening else _ignore,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and len(asked(folder)) < 4:
        time.sleep(0.01)
    return child


def asked(folder: Path) -> list[str]:
    path = folder / "ledger"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize(
    ("number", "listening"),
    [(signal.SIGTERM, True), (signal.SIGTERM, False), (signal.SIGINT, True)],
    ids=["terminated", "terminated in the background", "interrupted"],
)
def test_a_stopped_teacher_awaits_what_is_in_flight_and_prints_how_to_go_on(
    folder: Path, number: signal.Signals, listening: bool
) -> None:
    child = started(folder, listening=listening)
    time.sleep(0.6)  # a few have been answered
    child.send_signal(number)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Traceback" not in said
    assert "calls in flight to end and be journalled" in said
    assert "Teacher: concepts" in said
    resume = said.splitlines()[-1].strip()
    assert resume.startswith("po-distill dataset --input c.jsonl --output d.jsonl --provider haiku:PaidProvider")
    before = asked(folder)
    costs = json.loads(run(folder, "journal", "costs", "--json").stdout)
    assert costs["doubtful"] == 0
    assert costs["sends"] == len(before) < 30
    assert costs["usd"] == pytest.approx(len(before) * 60_000 / 1e9)
    again = run(folder, *shlex.split(resume)[1:], "--json", env=WITH_TESTS)
    assert again.returncode == 0, again.stderr
    teacher = json.loads(again.stdout)["teacher"]
    assert (teacher["accepted"], teacher["in_doubt"], teacher["from_journal"]) == (30, 0, len(before))
    assert len(set(asked(folder))) == len(asked(folder)) == 30  # nothing was paid for twice


@pytest.mark.parametrize("in_doubt", ["skip", "resend"])
def test_calls_in_doubt_are_left_out_or_asked_again_as_one_says(folder: Path, in_doubt: str) -> None:
    child = started(folder, delay_s=20.0)
    child.kill()
    child.communicate(timeout=30)
    lost = len(asked(folder))
    assert 4 <= lost <= 8
    again = paid(folder, "--free-text", "--option", "ledger=ledger", "--in-doubt", in_doubt, "--json")
    assert again.returncode == 0, again.stderr
    teacher = json.loads(again.stdout)["teacher"]
    assert teacher["in_doubt"] == lost
    assert teacher["rejected"].get("in_doubt", 0) == (lost if in_doubt == "skip" else 0)
    assert len(asked(folder)) == lost + (30 - lost if in_doubt == "skip" else 30)
    assert f"{lost} calls of an earlier run are in doubt" in again.stderr
    costs = json.loads(run(folder, "journal", "costs", "--json").stdout)
    assert costs["doubtful"] == lost
    assert teacher["charged_usd"] == pytest.approx(costs["usd"] + costs["doubtful_usd"])


def test_a_target_in_a_mix_is_reached_by_the_offline_teacher(folder: Path) -> None:
    arguments = ["--target", "50", "--mix", "aligned=0.5,needs_adjustment=0.3,misaligned=0.2", "--json"]
    made = run(folder, "dataset", "--input", "c.jsonl", "--output", "d.jsonl", *arguments)
    assert made.returncode == 0, made.stderr
    teacher = json.loads(made.stdout)["teacher"]
    assert teacher["labels"]["aligned"] >= 25
    assert teacher["labels"]["needs_adjustment"] >= 15
    assert teacher["labels"]["misaligned"] >= 10
    assert teacher["missing"] == {}


def test_watched_concepts_are_told_one_by_one(folder: Path) -> None:
    told = run(
        folder, "dataset", "--input", "c.jsonl", "--output", "d.jsonl", "--watch", CONCEPTS[3].concept_id + ", none"
    )
    assert f"watched {CONCEPTS[3].concept_id}: accepted" in told.stdout


def test_a_metric_by_its_path_is_tested_before_anything_is_asked(folder: Path) -> None:
    (folder / "our_metrics.py").write_text("def nothing(example, prediction, trace=None):\n    return 0.0\n")
    path = "po_distill.roles.product_owner.scoring:product_owner_metric"
    arguments = ["dataset", "--input", "c.jsonl", "--output", "d.jsonl", "--metric"]
    assert run(folder, *arguments, path).returncode == 0
    failed = run(folder, *arguments, "our_metrics:nothing", "--logs", "other")
    assert failed.returncode == 1
    assert "self-test failed: a sound answer scores 0.000" in failed.stderr
    assert not (folder / "other").exists()


def test_where_a_provider_is_comes_from_the_pipelines_config(folder: Path) -> None:
    (folder / "config.yaml").write_text("providers:\n  ours: {type: offline, base_url: 7}\n")
    arguments = [
        "dataset",
        "--input",
        "c.jsonl",
        "--output",
        "d.jsonl",
        "--provider",
        "ours",
        "--config",
        "config.yaml",
    ]
    refused = run(folder, *arguments)
    assert refused.returncode == 1
    assert "config.yaml: providers.ours is not as expected: base_url" in refused.stderr
    (folder / "config.yaml").write_text("providers:\n  ours: {type: offline}\n")
    assert run(folder, *arguments).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--budget-usd", "nan"],
        ["--budget-usd", "inf"],
        ["--temperature", "nan"],
        ["--min-score", "nan"],
        ["--target", "40", "--mix", "aligned=2,misaligned=-1"],
        ["--target", "40", "--mix", "aligned"],
        ["--target", "40", "--mix", "aligned=nan"],
        ["--target", "40", "--mix", "odd=1"],
        ["--mix", "aligned=1"],  # a mix of no target
        ["--thinking", "-5"],
        ["--option", "no-value"],
        ["--option", "x=[1"],
        ["--model", "m", "--models-file", "none.yaml"],
        ["--config", "none.yaml"],
        ["--metric", "nowhere"],
        ["--structured"],
        ["--provider", PAID, "--model", "unpriced", "--budget-usd", "1"],
    ],
)
def test_an_option_that_makes_no_sense_is_a_problem_with_a_fix_before_anything_is_asked(
    folder: Path, arguments: list[str]
) -> None:
    before = files(folder)
    refused = run(folder, "dataset", "--input", "c.jsonl", "--output", "d.jsonl", *arguments, env=WITH_TESTS)
    assert refused.returncode in (1, 2)
    assert "Traceback" not in refused.stderr
    assert "errors.pydantic.dev" not in refused.stderr
    assert refused.stdout == ""
    journals = {name for name in files(folder) - before if "teacher_journal.sqlite" in name}
    assert files(folder) - before <= journals  # a journal without a send may have been made
