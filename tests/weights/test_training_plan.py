from datetime import datetime
from pathlib import Path

import pytest

from po_distill.records import LoRASettings, TrainingJob
from po_distill.weights.memory_estimate import MemoryEstimate, MemoryNeeds, ModelShape, Packs, fit
from po_distill.weights.tokenization import TokenizedRow
from po_distill.weights.training_plan import make_plan, padding_share, row_order, steps_in


@pytest.mark.parametrize(
    ("minutes", "step_s", "spent_s", "steps"),
    [(None, 1.0, 0.0, None), (8.0, 10.0, 40.0, 41), (1.0, 10.0, 59.0, 1), (0.1, 100.0, 500.0, 1)],
)
def test_the_steps_fit_into_what_is_left_of_the_minutes(
    minutes: float | None, step_s: float, spent_s: float, steps: int | None
) -> None:
    assert steps_in(minutes, step_s, spent_s) == steps
    if minutes and steps and steps > 1:
        assert spent_s + steps * step_s <= minutes * 60


def test_every_row_is_seen_once_in_a_pass_and_like_lengths_come_together() -> None:
    lengths = [(7 * n) % 50 + 1 for n in range(64)]
    order = row_order(lengths, batch=4, steps=16, epochs=1.0, seed=1)
    assert sorted(order) == list(range(64))
    spread = sum(
        max(lengths[i] for i in order[s : s + 4]) - min(lengths[i] for i in order[s : s + 4]) for s in range(0, 64, 4)
    )
    assert spread < 16 * 10
    assert row_order(lengths, batch=4, steps=16, epochs=1.0, seed=1) == order
    assert row_order(lengths, batch=4, steps=16, epochs=1.0, seed=2) != order
    assert len(row_order(lengths, batch=4, steps=100, epochs=2.5, seed=1)) == 160


def test_a_curriculum_keeps_the_files_order_but_within_a_window_of_batches() -> None:
    lengths = [(7 * n) % 50 + 1 for n in range(160)]
    order = row_order(lengths, batch=4, steps=60, epochs=1.5, seed=1, as_given=True)
    assert [sorted(order[start : start + 64]) for start in (0, 64)] == [list(range(64)), list(range(64, 128))]
    assert sorted(order[128:192]) == [*range(32), *range(128, 160)]
    assert len(order) == 240


def test_a_pack_is_as_large_as_the_memory_allows() -> None:
    shape = ModelShape(64, 96, 2, 4, 2, 16, 512, tied=False, biases=0)
    needs = MemoryNeeds(shape, LoRASettings(), "float32", Packs(900, 300, 300), on_gpu=False)
    sizes = [needs.with_pieces(size, checkpoint_activations=False).total for size in (4, 2, 1)]
    assert [fit(needs, batch=4, budget_bytes=size).micro_batch for size in sizes] == [4, 2, 1]
    least = fit(needs, batch=4, budget_bytes=sizes[2] - 1)
    assert least.checkpoint_activations


def test_padding_is_what_lies_behind_the_ends_of_the_rows() -> None:
    assert padding_share([10, 10, 8, 6], 2) == pytest.approx(2 / 36)
    assert padding_share([10, 10, 8, 6], 1) == 0


@pytest.mark.parametrize(("asked", "every", "evaluations"), [(None, 20, 2), (7, 7, 4), (0, 0, 0), (99, 25, 1)])
def test_held_out_rows_are_measured_as_often_as_asked_else_as_a_tenth_of_the_time_allows(
    asked: int | None, every: int, evaluations: int, tmp_path: Path
) -> None:
    job = TrainingJob(
        data_path="d", base_path="b", base_name="b", output_path="o", work_path="w", epochs=1, evaluate_every=asked
    )
    digests = dict.fromkeys(("job_digest", "data_digest", "base_digest"), "sha256:" + "0" * 64)
    memory = MemoryEstimate(parts={"base": 1}, micro_batch=4, checkpoint_activations=False)
    plan = make_plan(
        job,
        [TokenizedRow(n, (1,) * (20 + n % 4), 10) for n in range(100)],
        **digests,
        precision="float32",
        memory=memory,
        memory_free_bytes=2,
        disk_bytes=3,
        step_s=1.0,
        heldout_rows=5,
        evaluation_s=2.0,
        generate_cases=0,
        spent_s=0.0,
    )
    assert (plan.steps, plan.evaluate_every, plan.evaluations) == (25, every, evaluations)
    assert plan.duration_s == 25 + 2 * evaluations
    assert plan.padding < 0.05
    told = plan.told(datetime(2026, 1, 1, 12, 0, 0))
    assert "25 steps of 4 rows" in told
    assert ("held out: 5 rows" in told) == (every > 0)
