"""The launcher `vertex_job`: a training run as a custom job on Vertex AI, on a rented GPU."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue, PositiveFloat, PositiveInt, validate_call

from po_distill.errors import MissingExtraError, SettingsError, TrainingError
from po_distill.launchers.job_bucket import JobBucket
from po_distill.launchers.local import sigterm_raises
from po_distill.launchers.run_files import RunFiles
from po_distill.launchers.vertex_machines import PRICES_AS_OF, PRICES_SOURCE, find_machine
from po_distill.launchers.vertex_service import JobService, checked_endpoint, has_ended, state_of
from po_distill.launchers.vertex_worker import (
    ADAPTER_NAME,
    CONSOLE_NAME,
    FAILURE_NAME,
    LOG_NAME,
    RUN_NAME,
    RemoteRun,
)
from po_distill.progress import is_quiet, say
from po_distill.records import TrainingJob

LABEL = "po_distill_run"
_IMAGE = (
    "docker.io/pytorch/pytorch:2.7.1-cuda12.6-cudnn9-runtime"  # Python 3.11, and torch as the extra [train] wants it
)
_PROJECT = re.compile(r"(?:[a-z0-9][a-z0-9.-]{0,62}:)?[a-z0-9][a-z0-9-]{0,62}")
_REGION = re.compile(r"[a-z]+-[a-z]+[0-9]+")
_STARTING_H = 0.25  # a machine, an image, packages: before the first step
_POLL_S = 10.0
# Arguments: the wheel, the constraints, the run's folder.
_SCRIPT = (
    'set -e; python -m pip install --quiet --constraint "$1" "$0[train]"; '
    'exec python -m po_distill.launchers.vertex_worker "$2"'
)


class VertexJobLauncher:
    """Trains on Vertex AI: uploads data, base and this package, waits for the job, and fetches the adapter.

    `machine` is a machine type of Compute Engine; its GPUs follow from it. `staging_bucket` is gs://BUCKET/FOLDER in
    the job's region. `image` needs Python 3.11 or newer and torch. With `hub_base` (organisation/name@revision) the
    machine takes the base from the hub in place of an upload. `max_hours` ends a job whatever it does. A job that an
    earlier, killed command began is found and waited for. `on_interrupt` says what Ctrl-C does to the job.
    """

    @validate_call
    def __init__(
        self,
        *,
        project: str | None = None,
        region: str = "us-central1",
        staging_bucket: str | None = None,
        machine: str = "a2-highgpu-1g",
        accelerator: str | None = None,
        accelerator_count: PositiveInt | None = None,
        image: str = _IMAGE,
        hub_base: str | None = None,
        max_hours: PositiveFloat = 12.0,
        disk_gb: PositiveInt = 200,
        price_per_hour: PositiveFloat | None = None,
        service_account: str | None = None,
        credentials_path: str | None = None,
        on_interrupt: Literal["ask", "cancel", "leave"] = "ask",
        endpoint: str | None = None,
        storage_endpoint: str | None = None,
        poll_s: PositiveFloat = _POLL_S,
    ) -> None:
        self._project = _named(project or os.environ.get("GOOGLE_CLOUD_PROJECT"), "project", _PROJECT, "my-project")
        self._region = _named(region, "region", _REGION, "us-central1")
        self._machine = find_machine(machine, accelerator, accelerator_count, price_per_hour)
        self._own_price = price_per_hour is not None
        if not staging_bucket:
            raise SettingsError(
                "The launcher vertex_job needs a bucket for what goes to the job and comes back.",
                "Give it: --launcher-option staging_bucket=gs://BUCKET/FOLDER, a bucket in the job's region.",
            )
        self._image, self._hub_base, self._service_account = image, hub_base, service_account
        self._max_hours, self._disk_gb, self._on_interrupt, self._poll_s = max_hours, disk_gb, on_interrupt, poll_s
        self._credentials_path = credentials_path
        self._endpoint, self._storage_endpoint = checked_endpoint(endpoint), checked_endpoint(storage_endpoint)
        self._staging = staging_bucket
        self._bucket()  # refuses what is no bucket

    # --- what a launcher is asked for -------------------------------------------------------------

    def describe(self, job: TrainingJob) -> dict[str, JsonValue]:
        """The CustomJob that `train` would create, as JSON. Nothing is asked or uploaded."""
        return self._spec(job, self._bucket(), RunFiles(job, self._hub_base))

    def estimate(self, job: TrainingJob) -> str:
        """What the job costs, in a sentence, as far as it is known beforehand."""
        price = self._machine.price_per_hour_usd
        if price is None:
            return (
                f"cost: the price of {self._machine.machine_type} is not known here; give price_per_hour "
                "(dollars an hour) for an estimate"
            )
        planned = ""
        if job.minutes is not None:
            planned = f"about ${price * (job.minutes / 60 + _STARTING_H):.2f} for {job.minutes:g} minutes of training, "
        return (
            f"cost: {planned}${price:.2f} an hour, at most ${price * self._max_hours:.2f} in {self._max_hours:g} hours "
            f"({self._priced_by()})"
        )

    def _priced_by(self) -> str:
        if self._own_price:
            return "by the option price_per_hour"
        return f"{PRICES_SOURCE}, {PRICES_AS_OF}; the option price_per_hour overrides it"

    def train(self, job: TrainingJob, folder: Path, environment: Mapping[str, str]) -> int:
        """Train on Vertex AI, or go on waiting, and put the adapter into `folder`; the run's exit status."""
        credentials = self._credentials()
        bucket, service = self._bucket(credentials), self._service(credentials)
        files = RunFiles(job, self._hub_base)
        say(self.estimate(job))
        try:
            name = self._begun(job, files, bucket, service, environment)
            ended = self._followed(name, files, bucket, service)
            return self._fetched(ended, job, files, bucket, folder)
        finally:
            bucket.close()

    # --- its parts --------------------------------------------------------------------------------

    def _begun(
        self,
        job: TrainingJob,
        files: RunFiles,
        bucket: JobBucket,
        service: JobService,
        environment: Mapping[str, str],
    ) -> str:
        """The name of a job that runs or ran well already, or of a new one."""
        there = service.find(LABEL, files.key)
        if there and (not has_ended(there) or state_of(there) == "SUCCEEDED"):
            say(f"vertex_job: {there['name']} is this run, and {state_of(there).lower()}; no other one is started")
            return str(there["name"])
        if there:
            say(f"vertex_job: the earlier job is {state_of(there).lower()}; a new one goes on from its checkpoints")
        for path, source in files.uploads.items():
            if bucket.upload(path, source):
                say(f"vertex_job: uploaded {source.name} ({source.stat().st_size / 1e6:.1f} MB)")
        for path, data in files.written.items():
            bucket.write(path, data)
        bucket.write(
            f"{files.run}/{RUN_NAME}", self._remote(job, bucket, files, environment).model_dump_json().encode()
        )
        name = service.create(self._spec(job, bucket, files))
        say(f"vertex_job: started {name} on {self._machine.machine_type} in {self._region}")
        return name

    def _followed(self, name: str, files: RunFiles, bucket: JobBucket, service: JobService) -> dict[str, Any]:
        """The job, ended; what it prints is printed here meanwhile."""
        console, shown_state = b"", ""
        try:
            with sigterm_raises():
                while True:
                    job = service.get(name)  # before its output, so that none of that is missed at the end
                    if state_of(job) != shown_state:
                        shown_state = state_of(job)
                        say(f"vertex_job: {shown_state.lower()}")
                    newest = bucket.read(f"{files.run}/{CONSOLE_NAME}", known_bytes=len(console))
                    if newest:
                        _show(newest[len(console) :] if newest.startswith(console) else newest)
                        console = newest
                    if has_ended(job):
                        return job
                    time.sleep(self._poll_s)
        except KeyboardInterrupt:
            self._interrupted(name, service)
            raise
        except SystemExit:
            say(_left_running(name))
            raise

    def _interrupted(self, name: str, service: JobService) -> None:
        wanted = self._on_interrupt
        if wanted == "ask":
            wanted = _asked_to_cancel(self._machine.price_per_hour_usd) if sys.stdin.isatty() else "cancel"
        if wanted == "leave":
            say(_left_running(name))
            return
        service.cancel(name)
        say(f"vertex_job: {name} was asked to end")

    def _fetched(
        self, ended: Mapping[str, Any], job: TrainingJob, files: RunFiles, bucket: JobBucket, folder: Path
    ) -> int:
        if (log := bucket.read(f"{files.run}/{LOG_NAME}")) and job.log_path:
            Path(job.log_path).parent.mkdir(parents=True, exist_ok=True)
            Path(job.log_path).write_bytes(log)
        if state_of(ended) == "SUCCEEDED":
            if not bucket.fetch(f"{files.run}/{ADAPTER_NAME}", folder):
                raise TrainingError(
                    f"The job {ended['name']} ended well, but left no adapter in {bucket.uri(files.run)}.",
                    "Look at its output in the console of Vertex AI; name another --output to train again.",
                )
            return 0
        if failure := bucket.read(f"{files.run}/{FAILURE_NAME}"):
            (Path(job.work_path) / FAILURE_NAME).write_bytes(failure)
            return 1
        reason = ended.get("error", {}).get("message", "it says no reason")
        raise TrainingError(
            f"The job {ended['name']} ended as {state_of(ended).lower()}: {reason[:500]}.",
            "Read what it printed above; the same command starts another one, which goes on from its checkpoints.",
        )

    def _remote(
        self, job: TrainingJob, bucket: JobBucket, files: RunFiles, environment: Mapping[str, str]
    ) -> RemoteRun:
        return RemoteRun(
            job=job,
            environment=dict(environment),
            data=bucket.mounted(files.data),
            validation=bucket.mounted(files.validation) if files.validation else None,
            base=bucket.mounted(files.base) if files.base else None,
            hub_base=self._hub_base,
            processes=max(1, self._machine.accelerator_count),
        )

    def _spec(self, job: TrainingJob, bucket: JobBucket, files: RunFiles) -> dict[str, Any]:
        machine: dict[str, Any] = {"machineType": self._machine.machine_type}
        if self._machine.accelerator_type:
            machine["acceleratorType"] = self._machine.accelerator_type
            machine["acceleratorCount"] = self._machine.accelerator_count
        arguments = [bucket.mounted(path) for path in (files.wheel, files.constraints, files.run)]
        pool = {
            "machineSpec": machine,
            "replicaCount": "1",
            "diskSpec": {"bootDiskType": "pd-ssd", "bootDiskSizeGb": self._disk_gb},
            "containerSpec": {"imageUri": self._image, "command": ["bash", "-c", _SCRIPT], "args": arguments},
        }
        account = {"serviceAccount": self._service_account} if self._service_account else {}
        return {
            "displayName": f"po-distill {Path(job.output_path).parent.name}",
            "labels": {LABEL: files.key},
            "jobSpec": {
                "workerPoolSpecs": [pool],
                "scheduling": {"timeout": f"{round(self._max_hours * 3600)}s"},
                "baseOutputDirectory": {"outputUriPrefix": bucket.uri(files.run)},
                **account,
            },
        }

    def _bucket(self, credentials: Any = None) -> JobBucket:
        return JobBucket(self._staging, project=self._project, credentials=credentials, endpoint=self._storage_endpoint)

    def _service(self, credentials: Any) -> JobService:
        return JobService(self._project, self._region, credentials=credentials, endpoint=self._endpoint)

    def _credentials(self) -> Any:
        try:
            import google.auth
            from google.auth.exceptions import GoogleAuthError
        except ImportError as error:
            raise MissingExtraError("google-auth", "vertex", "The launcher vertex_job") from error
        scopes = ["https://www.googleapis.com/auth/cloud-platform"]
        try:
            if self._credentials_path:
                return google.auth.load_credentials_from_file(self._credentials_path, scopes=scopes)[0]
            return google.auth.default(scopes=scopes)[0]
        except (GoogleAuthError, OSError, ValueError) as error:
            raise TrainingError(
                f"There are no credentials for Vertex AI: {str(error)[:300]}.",
                "Run: gcloud auth application-default login, or give the option credentials_path.",
            ) from error


def _named(value: str | None, what: str, pattern: re.Pattern[str], example: str) -> str:
    if not value:
        raise SettingsError(
            f"The launcher vertex_job needs the {what} that pays for the job.",
            f"Give --launcher-option {what}={example}, or set the variable GOOGLE_CLOUD_PROJECT.",
        )
    if not pattern.fullmatch(value):
        raise SettingsError(f"The {what} of vertex_job is {value!r}.", f"Give its name alone, such as {example}.")
    return value


def _show(output: bytes) -> None:
    if not is_quiet():
        sys.stderr.write(output.decode("utf-8", "replace"))
        sys.stderr.flush()


def _left_running(name: str) -> str:
    return f"vertex_job: {name} goes on, and costs; the same command waits for it again"


def _asked_to_cancel(price_usd: float | None) -> Literal["cancel", "leave"]:
    cost = f", which costs ${price_usd:.2f} an hour" if price_usd else ""
    try:
        answer = input(f"Cancel the job on Vertex AI too{cost}? [Y/n] ")
    except (EOFError, KeyboardInterrupt):
        return "cancel"
    return "leave" if answer.strip().lower().startswith("n") else "cancel"
