"""What a training run tells as it goes: progress for people, and its log, a line of JSON per event."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from po_distill import artifacts
from po_distill.progress import Advance
from po_distill.weights.process_team import ProcessTeam
from po_distill.weights.training_plan import TrainingPlan

COMPLETE = "complete.json"  # written into a checkpoint after all else
_FIGURES = ("loss", "learning_rate", "grad_norm", "tokens")
_HELD_OUT = "eval_"  # begins the names of the Trainer's figures of held-out rows


class StepRecorder(TrainerCallback):  # type: ignore[misc]
    """Shows each step, writes it to the log, and marks checkpoints that are complete.

    The log's events are `plan` and `resume`, where a run begins or goes on, `step`, `held_out`, `checkpoint` and `end`.
    """

    def __init__(self, advance: Advance, log_path: str | None, plan: TrainingPlan, team: ProcessTeam) -> None:
        self._advance, self._log_path = advance, log_path if team.writes else None
        self._plan, self._team = plan, team
        self._started = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the plan, or where an earlier run is gone on with."""
        if state.global_step:
            self._write("resume", step=state.global_step)
        else:
            self._write("plan", **self._plan.model_dump(mode="json"))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the step's clock."""
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Have the held-out rows measured by the last weights too."""
        if self._plan.evaluate_every and state.global_step == state.max_steps:
            control.should_evaluate = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Put the step's time into the Trainer's history, which checkpoints carry, and tell it."""
        if f"{_HELD_OUT}loss" in logs:
            found = {name.removeprefix(_HELD_OUT): value for name, value in logs.items() if name.startswith(_HELD_OUT)}
            self._advance(0, note=f"held-out loss {found['loss']:.3f}")
            self._write("held_out", step=state.global_step, **found)
        if "loss" not in logs:
            return
        entry = state.log_history[-1]
        entry["step_s"] = time.perf_counter() - self._started
        tokens_per_s = entry["tokens"] / entry["step_s"]
        self._advance(1, note=f"loss {logs['loss']:.3f}, {tokens_per_s:.0f} tokens/s")
        figures = {name: logs[name] for name in _FIGURES if name in logs}
        speed = {"step_s": round(entry["step_s"], 4), "tokens_per_s": round(tokens_per_s, 1)}
        self._write("step", step=state.global_step, steps=state.max_steps, **figures, **speed)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint, all of whose files are written by now."""
        self._team.wait()
        if not self._team.writes:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        artifacts.write_json(folder / COMPLETE, {"step": state.global_step})
        self._write("checkpoint", step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say where the run ended."""
        self._write("end", step=state.global_step, stopped_early=state.global_step < state.max_steps)

    def _write(self, event: str, **values: Any) -> None:
        if self._log_path:
            artifacts.append_jsonl(self._log_path, {"event": event, **values, "time": artifacts.now()})
