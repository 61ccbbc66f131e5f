"""What a run on another machine consists of, by the digests of its parts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from po_distill.errors import TrainingError
from po_distill.launchers.own_wheel import build_own_wheel, pinned_versions
from po_distill.records import TrainingJob


class RunFiles:
    """The paths of a run's files below the staging bucket. Equal files have equal paths, and go there once.

    `key` is the run's own name: the digest of all that decides its result, and of its version's name.
    """

    def __init__(self, job: TrainingJob, hub_base: str | None) -> None:
        wheel, constraints = build_own_wheel(), pinned_versions().encode()
        self.wheel = f"packages/{_digest(wheel.data)[:16]}/{wheel.name}"
        self.constraints = f"packages/{_digest(constraints)[:16]}/constraints.txt"
        self.written = {self.wheel: wheel.data, self.constraints: constraints}
        self.data = f"data/{_digest_file(Path(job.data_path))[:32]}.jsonl"
        self.uploads = {self.data: Path(job.data_path)}
        self.validation = None
        if job.validation_path:
            self.validation = f"data/{_digest_file(Path(job.validation_path))[:32]}.jsonl"
            self.uploads[self.validation] = Path(job.validation_path)
        self.base = None if hub_base else self._with_base(Path(job.base_path))
        places = {"data_path", "validation_path", "base_path", "output_path", "work_path", "log_path"}
        deciding = [
            job.model_dump(mode="json", exclude=places),
            Path(job.output_path).parent.name,
            [self.data, self.validation, self.base or hub_base],
        ]
        self.key = _digest(json.dumps(deciding, sort_keys=True).encode())[:32]
        self.run = f"runs/{self.key}"

    def _with_base(self, folder: Path) -> str:
        digests = {path: _digest_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
        whole = _digest("".join(f"{path.name} {digest}\n" for path, digest in digests.items()).encode())
        base = f"bases/{whole[:32]}"
        self.uploads |= {f"{base}/{path.name}": path for path in digests}
        return base


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
