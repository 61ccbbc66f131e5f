"""How far a run is: which stages are finished for which inputs, and which version is being made.

Kept in `<models>/<stem>.run.json`. What a stage depends on is digested into a key, which is noted
before the work begins; the outputs are noted after it ended. So a run that was killed goes on where
it was, and a stage whose inputs changed is done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from po_distill import artifacts
from po_distill.progress import say
from po_distill.records import Digest, Record

_R = TypeVar("_R", bound=Record)
_BEFORE_TRAINING = ("concepts", "teacher", "dataset", "base_gguf")


class StageState(Record):
    """What is known of one stage."""

    key: Digest  # of all that the stage depends on
    finished: bool = False
    outputs: dict[str, str] = Field(default_factory=dict)  # name -> path
    duration_s: float = 0.0


class RunRecord(Record):
    """What is kept of a run."""

    version: str | None = None  # the student version that is being made, or was made last
    concepts_digest: Digest | None = None  # of the concepts file that we wrote
    stages: dict[str, StageState] = Field(default_factory=dict)


class RunState:
    """The state of the newest run below a models folder, saved with every change."""

    def __init__(self, models: Path, stem: str, *, fresh: bool) -> None:
        """`fresh` forgets which stages are finished, and begins a new version."""
        self._models, self._stem, self._fresh = models, stem, fresh
        self._path = models / f"{stem}.run.json"
        before = artifacts.read_record(self._path, RunRecord) if self._path.exists() else RunRecord()
        self._record = RunRecord(concepts_digest=before.concepts_digest) if fresh else before
        self.told: dict[str, str] = {}  # stage -> "done" or "kept"

    @property
    def version(self) -> str:
        """The student version of this run; one has begun (`begin_version`)."""
        assert self._record.version is not None
        return self._record.version

    def outputs(self) -> dict[str, str]:
        """The outputs of all stages, name -> path."""
        return {name: path for stage in self._record.stages.values() for name, path in stage.outputs.items()}

    def stage(
        self,
        name: str,
        depends_on: Mapping[str, Any],
        outputs: Mapping[str, Path],
        work: Callable[[], _R],
        again: Callable[[], _R],
    ) -> _R:
        """The stage's record: by `work`, or by `again` where it was finished for the same inputs."""
        key = artifacts.digest_value(dict(depends_on))
        before = self._record.stages.get(name)
        if before and before.finished and before.key == key and all(path.exists() for path in outputs.values()):
            say(f"{name}: finished before, kept")
            self.told[name] = "kept"
            return again()
        self._note(name, StageState(key=key))
        started = time.monotonic()
        record = work()
        paths = {label: str(path) for label, path in outputs.items()}
        duration_s = round(time.monotonic() - started, 2)
        self._note(name, StageState(key=key, finished=True, outputs=paths, duration_s=duration_s))
        self.told[name] = "done"
        return record

    def begin_version(self, depends_on: Mapping[str, Any]) -> None:
        """Make sure of a version for these training inputs: the one that was begun for them, or a new one."""
        before = self._record.stages.get("train")
        version = self._record.version
        if version and before and before.key == artifacts.digest_value(dict(depends_on)):
            return
        if version is None or (self._models / version / "adapter").exists():
            version = artifacts.next_version(self._models, self._stem)
        (self._models / version).mkdir(parents=True, exist_ok=True)
        kept = {name: stage for name, stage in self._record.stages.items() if name in _BEFORE_TRAINING}
        self._save(self._record.model_copy(update={"version": version, "stages": kept}))

    # --- the concepts file, which may be somebody's own ----------------------------------------

    def is_our_concepts_file(self, path: Path) -> bool:
        """Whether we wrote this concepts file, and nobody changed it since."""
        return self._record.concepts_digest == artifacts.digest_file(path)

    def note_concepts_file(self, path: Path) -> None:
        """Remember that we wrote this concepts file."""
        self._save(self._record.model_copy(update={"concepts_digest": artifacts.digest_file(path)}))

    def _note(self, name: str, stage: StageState) -> None:
        self._save(self._record.model_copy(update={"stages": {**self._record.stages, name: stage}}))

    def _save(self, record: RunRecord) -> None:
        self._record = record
        artifacts.write_json(self._path, record)
