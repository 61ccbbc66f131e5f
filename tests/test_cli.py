"""The command line as a user meets it: in processes of its own, in a folder of its own."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

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
    assert len((tmp_path / "logs/distillation/teacher_calls.jsonl").read_text().splitlines()) == 30


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
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
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
