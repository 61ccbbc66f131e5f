import pytest

from po_distill.errors import TrainingError
from po_distill.weights.packed_rows import pack
from po_distill.weights.process_team import ProcessTeam, blank_row, check_team
from po_distill.weights.tokenization import IGNORED, TokenizedRow


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_shares_of_a_step_are_the_step_whatever_the_number_of_processes(size: int) -> None:
    order = [5, 3, 8, 1, 0, 2, 7, 6, 4]  # two steps of four rows, and a last one of one
    shares = [ProcessTeam(number=number, size=size).share(order, batch=4, blank=99) for number in range(size)]
    assert len({len(share) for share in shares}) == 1  # all compute equally often
    for first in (0, 4, 8):
        own = 4 // size
        start = first // size
        step = [row for share in shares for row in share[start : start + own]]
        assert sorted(row for row in step if row != 99) == sorted(order[first : first + 4])


def test_a_blank_row_has_nothing_under_the_loss() -> None:
    row = TokenizedRow(line=1, input_ids=(1, 2, 3, 4), prompt_tokens=2)
    assert (pack([blank_row(row)])["labels"] == IGNORED).all()
    mixed = pack([blank_row(row), row])["labels"]
    assert (mixed != IGNORED).sum() == row.answer_tokens


def test_a_batch_that_cannot_be_shared_is_refused_with_sizes_that_can() -> None:
    check_team(ProcessTeam(size=2), batch=4, quantization_aware=True)
    with pytest.raises(TrainingError, match="4 rows of a step cannot be shared evenly among 3 processes") as caught:
        check_team(ProcessTeam(size=3), batch=4, quantization_aware=False)
    assert "--batch 6, or 1 or 2 or 4 processes" in caught.value.fix


def test_weights_that_are_spread_cannot_be_rounded() -> None:
    with pytest.raises(TrainingError, match="cannot be rounded as a whole"):
        check_team(ProcessTeam(size=2, sharded=True), batch=4, quantization_aware=True)


def test_a_team_of_one_agrees_with_itself() -> None:
    alone = ProcessTeam()
    assert alone.agree(3) == 3
    assert alone.all_values("x") == ["x"]
    assert alone.seconds_per_sum(10) == 0.0
    assert alone.leads
    assert alone.writes
