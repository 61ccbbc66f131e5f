"""A run's student in memory, with what rounds it and what measures it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from po_distill.records import TrainingJob
from po_distill.weights.held_out_answers import AnswerJudge, make_judge
from po_distill.weights.held_out_loss import HeldOut
from po_distill.weights.process_team import ProcessTeam
from po_distill.weights.quantization_aware import QuantizationAware
from po_distill.weights.run_data import RunData
from po_distill.weights.run_planning import Room
from po_distill.weights.student_model import load_student, on_gpu

_CASES_ON_GPU = 4  # held-out cases that are answered where nobody says how many; a processor is too slow for that


@dataclass(frozen=True)
class LoadedRun:
    """What a run computes with."""

    student: Any
    rounding: QuantizationAware | None
    held_out: HeldOut | None
    judge: AnswerJudge | None

    @property
    def cases(self) -> int:
        """How many held-out cases are answered each time."""
        return len(self.judge.prompts) if self.judge else 0

    def generation_s(self) -> float:
        """What answering them takes at most, measured on the first tokens."""
        return self.judge.seconds(self.student) if self.judge else 0.0


def load_run(job: TrainingJob, data: RunData, room: Room, team: ProcessTeam) -> LoadedRun:
    """Load the base with a fresh adapter. Raises what `load_student` and `make_judge` raise."""
    student = load_student(
        Path(job.base_path),
        job.lora,
        room.precision,
        seed=job.seed,
        sharded=team.sharded,
        checkpoint_activations=room.memory.checkpoint_activations,
        nf4=job.quantize_base == "nf4",
    )
    rounding = QuantizationAware(student) if job.quantization_aware else None
    if not data.held_out:
        return LoadedRun(student, rounding, None, None)
    assert job.validation_path is not None
    judge = make_judge(job.validation_path, data.held_out, _cases(job, team), job.contract, data.tokenizer)
    prepare = rounding.apply if rounding else None
    held_out = HeldOut(data.held_out, room.memory.micro_batch, judge=judge, prepare=prepare)
    return LoadedRun(student, rounding, held_out, judge)


def _cases(job: TrainingJob, team: ProcessTeam) -> int:
    if job.generate_cases is not None:
        return job.generate_cases
    return _CASES_ON_GPU if on_gpu() and job.contract is not None and not team.sharded else 0
