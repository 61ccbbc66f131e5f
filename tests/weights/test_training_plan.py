import pytest

from po_distill.weights.training_plan import choose_micro_batch, row_order, steps_in


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


def test_a_pack_is_as_large_as_the_memory_allows() -> None:
    assert choose_micro_batch(4, longest=900, shared=300, most_tokens=2700) == 4
    assert choose_micro_batch(4, longest=900, shared=300, most_tokens=1600) == 2
    assert choose_micro_batch(4, longest=900, shared=300, most_tokens=100) == 1
