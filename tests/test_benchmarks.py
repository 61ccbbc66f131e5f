"""The benchmarks run, and what they assert in every run holds. No figure of theirs is tested here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name: str, *arguments: str) -> dict[str, object]:
    command = [sys.executable, str(BENCHMARKS / name), *arguments, "--json"]
    environment = {**os.environ, "PO_DISTILL_QUIET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_the_teachers_benchmark_runs_and_its_counts_add_up() -> None:
    found = run(
        "teacher.py", "--calls", "40", "--runs", "1", "--latency-s", "0.05", "--width", "16", "--quota-calls", "60"
    )
    assert {"ratio_clean", "ratio_429", "ratio_quota", "gave_up"} <= set(found)
    assert found["gave_up"] == 0
    assert found["accepted_ours"] > found["accepted_plain"]


@pytest.mark.slow
def test_killed_runs_pay_for_nothing_that_is_journalled_again() -> None:
    found = run("teacher_kills.py", "--runs", "4")
    assert (found["runs"], found["bought_again"]) == (4, 0)


def test_a_terminated_run_pays_for_nothing_twice() -> None:
    found = run("teacher_kills.py", "--runs", "2", "--sigterm")
    assert (found["paid_twice"], found["in_doubt_told"]) == (0, 0)


@pytest.mark.slow
def test_many_concepts_are_streamed_in_little_memory() -> None:
    assert run("teacher_kills.py", "--memory", "3000")["peak_mb"] < 300


@pytest.mark.slow
def test_the_datasets_benchmark_finds_what_it_planted_in_little_memory() -> None:
    found = run("dataset.py", "--rows", "3000")
    assert {"rows_per_second", "ratio_floor", "peak_gib", "floor_rows_per_second"} <= set(found)
    assert (found["rows"], found["planted_cut"], found["within_limit"]) == (3000, 30, True)


def test_the_evaluations_benchmark_scores_as_the_plain_loop_does() -> None:
    found = run("evaluation.py", "--rows", "400", "--plain-rows", "40", "--runs", "1")
    assert {"rows_per_second", "plain_rows_per_second", "ratio_plain_loop"} <= set(found)
    assert float(str(found["largest_difference"])) < 1e-9
    assert (found["rows"], found["invalid"], found["repaired"]) == (400, 50, 50)


def test_the_quantizers_benchmark_finds_the_same_bytes_by_all_makers() -> None:
    found = run("quantizers.py", "--rows", "40", "--rounds", "1")
    assert found["differing"] == 0
    assert {"ratio_q6_k", "ratio_q4_0_numpy"} <= set(found)


def test_the_intervals_of_the_statistics_benchmark_hold_the_truth_as_often_as_they_say() -> None:
    found = run("paired_statistics.py", "--studies", "300", "--resamples", "400")
    assert 0.90 <= float(str(found["lowest_coverage"])) <= float(str(found["highest_coverage"])) <= 1.0
    assert float(str(found["highest_false_pass"])) <= 0.08  # by chance, over 300 studies


def test_the_plans_memory_is_estimated_as_the_layers_keep_it() -> None:
    found = run("training_7b.py")
    assert found["parameters"] == 7_248_023_552
    assert abs(float(str(found["traced_over_estimated"])) - 1) < 0.01
    estimates = found["estimates"]
    assert isinstance(estimates, dict)
    assert estimates["40 GB"]["fits"] and not estimates["40 GB"]["checkpoint_activations"]
    assert not estimates["12 GB"]["fits"] and estimates["12 GB, nf4"]["fits"]
