"""The processes that train one student together: what each has of a step, and how they agree.

A launcher such as `accelerate` starts them with variables that torch's own launcher sets too (RANK, WORLD_SIZE,
LOCAL_RANK, LOCAL_WORLD_SIZE). A process that was started alone is a team of one, and nothing here does anything then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from po_distill.errors import TrainingError
from po_distill.weights.tokenization import TokenizedRow

_T = TypeVar("_T")
_NONCE_NAME = ".machine"


@dataclass(frozen=True)
class ProcessTeam:
    """One process's place among `size`: each computes its share of every step, and all keep the same adapter."""

    number: int = 0
    size: int = 1
    local_number: int = 0  # among those of its machine
    on_machine: int = 1
    sharded: bool = False  # the weights are spread over the processes (FSDP), and not copied to each (DDP)

    @property
    def leads(self) -> bool:
        """Whether its plan is everybody's, and it is the one that talks."""
        return self.number == 0

    @property
    def writes(self) -> bool:
        """Whether it writes plan, checkpoints, log and adapter of its machine."""
        return self.local_number == 0

    @property
    def machines(self) -> int:
        """How many machines the processes are on."""
        return self.size // self.on_machine

    def share(self, order: Sequence[int], *, batch: int, blank: int) -> list[int]:
        """What of an order of rows is this process's: of each step's `batch` rows, every `size`-th.

        The rows of a step are of like length, so the shares are too. A last, short step is filled up with the number
        `blank`, so that all processes compute equally often.
        """
        if self.size == 1:
            return list(order)
        mine: list[int] = []
        for start in range(0, len(order), batch):
            step = list(order[start : start + batch])
            step += [blank] * (-len(step) % self.size)
            mine += step[self.number :: self.size]
        return mine

    # --- agreeing -------------------------------------------------------------------------------

    def agree(self, value: _T) -> _T:
        """The leader's value, for all."""
        if self.size == 1:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def all_values(self, value: _T) -> list[_T]:
        """Everybody's value."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Go on when everybody is here."""
        self.all_values(None)

    def seconds_per_sum(self, values: int) -> float:
        """How long it takes to sum so many fp32 values over all processes; 0 where that was part of a timed pack."""
        if self.size == 1 or self.sharded:
            return 0.0
        import torch
        from torch import distributed

        took_s = []
        for _ in range(2):  # the first one opens connections
            numbers = torch.zeros(values, device="cuda" if torch.cuda.is_available() else "cpu")
            self.wait()
            started_s = time.perf_counter()
            distributed.all_reduce(numbers)
            float(numbers[0])  # on a GPU the call above returns before the sum is there
            took_s.append(time.perf_counter() - started_s)
        return max(self.all_values(took_s[-1]))

    def leave(self) -> None:
        """Close the connections to the others."""
        if self.size == 1:
            return
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()

    def check_folder(self, work: Path) -> None:
        """Raise TrainingError where several machines would write into one folder."""
        if self.machines == 1:
            return
        nonce = work / _NONCE_NAME
        machine = self.number // self.on_machine
        if self.writes:
            work.mkdir(parents=True, exist_ok=True)
            nonce.write_text(str(machine))
        self.wait()
        alone = nonce.read_text() == str(machine)
        if not all(self.all_values(alone)):
            raise TrainingError(
                f"The machines of this run share the folder {work.parent}, and each writes its own files.",
                "Name another --output on each machine; the adapters will be the same.",
            )


def join_team() -> ProcessTeam:
    """This process's place in its team, connected to the others."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ProcessTeam()
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())  # connects, and takes this process's own GPU
    return ProcessTeam(
        number=int(os.environ["RANK"]),
        size=size,
        local_number=int(os.environ["LOCAL_RANK"]),
        on_machine=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        sharded=os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true",
    )


def blank_row(row: TokenizedRow) -> TokenizedRow:
    """The shortest row that has nothing under the loss."""
    return TokenizedRow(line=row.line, input_ids=row.input_ids[:2], prompt_tokens=2)


def check_team(team: ProcessTeam, *, batch: int, quantization_aware: bool) -> None:
    """Raise TrainingError where so many processes cannot do what is asked."""
    if batch % team.size:
        fitting = [size for size in range(1, batch + 1) if batch % size == 0]
        raise TrainingError(
            f"{batch} rows of a step cannot be shared evenly among {team.size} processes.",
            f"Use --batch {-(-batch // team.size) * team.size}, or {' or '.join(map(str, fitting))} processes.",
        )
    if team.sharded and quantization_aware:
        raise TrainingError(
            "Weights that are sharded over processes (fsdp) cannot be rounded as a whole before each step.",
            "Train without --quantization-aware, or without the launcher's option fsdp.",
        )
