"""A loopback server that does Vertex AI's custom jobs and the bucket they work on; it runs their containers here.

It refuses what the real service refuses: machines with accelerators that they do not take, regions that it is not in,
labels, durations and fields out of form, a bucket that is not there. A container is its command, run with a folder in
the place of the mounted bucket, in which Cloud Storage's objects are files, and with a `pip` that installs nothing.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from google.auth import jwt
from google.auth.exceptions import GoogleAuthError
from google.cloud.aiplatform_v1 import CustomJob
from google.protobuf.json_format import ParseError

from fakes.vertex_batch import FakeBatchVertex, now, refuse, set_state
from fakes.vertex_checks import RefusedError
from fakes.vertex_oauth import Tokens

REGIONS = ("us-central1", "us-east1", "us-east4", "us-west1", "europe-west4", "asia-southeast1")
# Machine type -> accelerators that it takes, as the service's documentation lists them.
MACHINES = {
    "a2-highgpu-1g": {("NVIDIA_TESLA_A100", 1)},
    "a2-highgpu-2g": {("NVIDIA_TESLA_A100", 2)},
    "a2-ultragpu-1g": {("NVIDIA_A100_80GB", 1)},
    "g2-standard-8": {("NVIDIA_L4", 1)},
    "g2-standard-24": {("NVIDIA_L4", 2)},
    "n1-standard-8": {("NVIDIA_TESLA_T4", n) for n in (1, 2, 4)} | {(None, 0)},
    "n1-highmem-8": {("NVIDIA_TESLA_T4", n) for n in (1, 2, 4)} | {(None, 0)},
}
ACCELERATORS = {accelerator for pairs in MACHINES.values() for accelerator, _ in pairs if accelerator}
_LABEL_NAME, _LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}"), re.compile(r"[a-z0-9_-]{0,63}")
_FILTER = re.compile(r'labels\.([a-z0-9_-]+)="([^"]*)"')
_CANCELLED_AFTER_S = 0.1
_MOUNT = "/gcs"


def _read(text: str) -> dict[str, Any]:
    """A job as the service reads it, with names for the numbers of enumerations. Raises ParseError."""
    message = CustomJob.from_json(text)
    return dict(
        json.loads(CustomJob.to_json(message, use_integers_for_enums=False, including_default_value_fields=False))
    )


class _SignedTokens(Tokens):
    """Takes what a service account signs for itself too: google-cloud-aiplatform asks for no access token then."""

    def check(self, authorization: str | None) -> None:
        signed = (authorization or "").removeprefix("Bearer ")
        if signed.count(".") != 2:
            return super().check(authorization)
        claims = json.loads(base64.urlsafe_b64decode(signed.split(".")[1] + "=="))
        try:
            jwt.decode(signed, certs=self.service_accounts[claims["iss"]])
        except (KeyError, ValueError, GoogleAuthError) as error:
            raise RefusedError(401, "UNAUTHENTICATED", f"Request had invalid credentials: {error}") from error
        return None


class FakeJobVertex(FakeBatchVertex):
    """`with FakeJobVertex() as vertex:`; `folder` is where its containers find the bucket. `custom` holds the jobs."""

    def __init__(self, folder: Path, *, runs: bool = True, run_s: float = 0.0, bucket: str = "po-bucket") -> None:
        super().__init__(bucket=bucket)
        self.tokens = _SignedTokens(set(), {})
        self.folder, self.runs, self.run_s = folder, runs, run_s
        self.custom: dict[str, dict[str, Any]] = {}
        self.fail_with = ""  # the message of a container that fails before it does anything
        self.poll_503 = 0
        self.containers: list[list[str]] = []  # the arguments of each `pip`
        self._bin = folder / "bin"
        self._bin.mkdir(parents=True)
        stub = f'#!/bin/sh\nif [ "$1 $2" = "-m pip" ]; then echo "$@" >> "{folder}/pip.txt"; exit 0; fi\n'
        (self._bin / "python").write_text(f'{stub}exec "{sys.executable}" "$@"\n')
        (self._bin / "python").chmod(0o755)

    @property
    def installed(self) -> list[str]:
        """What containers had `pip` install, a line each."""
        path = self.folder / "pip.txt"
        return path.read_text().splitlines() if path.exists() else []

    def finish(self, job: dict[str, Any]) -> None:
        set_state(job, "SUCCEEDED", endTime=now())

    def add_routes(self, router: web.UrlDispatcher) -> None:
        here = "/v1/projects/{project}/locations/{location}/customJobs"
        router.add_post(here, self._create_custom)
        router.add_get(here, self._list_custom)
        router.add_get(f"{here}/{{id:[0-9]+}}", self._get_custom)
        router.add_post(f"{here}/{{id:[0-9]+}}:cancel", self._cancel_custom)

    # --- jobs -----------------------------------------------------------------------------------

    async def _create_custom(self, request: web.Request) -> web.StreamResponse:
        self.calls["create"] += 1
        location = request.match_info["location"]
        if location not in REGIONS:
            return refuse(404, f"The location {location} is not supported by custom jobs.")
        try:
            body = _read(await request.text())
        except ParseError as error:
            return refuse(400, f"Invalid JSON payload received. {error}")
        if problem := self._problem(body):
            return refuse(400, problem)
        number = str(7_000_000_000 + len(self.custom))
        name = f"projects/{request.match_info['project']}/locations/{location}/customJobs/{number}"
        job = self.custom[number] = {**body, "name": name, "createTime": now(), "updateTime": now()}
        set_state(job, "PENDING")
        task = asyncio.create_task(self._run_custom(job))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return web.json_response(job)

    async def _get_custom(self, request: web.Request) -> web.StreamResponse:
        self.calls["poll"] += 1
        if self.poll_503:
            self.poll_503 -= 1
            return refuse(503, "The service is currently unavailable.")
        job = self.custom.get(request.match_info["id"])
        return web.json_response(job) if job else refuse(404, "The CustomJob does not exist.")

    async def _list_custom(self, request: web.Request) -> web.StreamResponse:
        self.calls["list"] += 1
        if request.match_info["location"] not in REGIONS:
            return refuse(404, f"The location {request.match_info['location']} is not supported by custom jobs.")
        wanted = _FILTER.fullmatch(request.query.get("filter", ""))
        if not wanted:
            return refuse(400, "Invalid filter.")
        found = [job for job in self.custom.values() if job.get("labels", {}).get(wanted[1]) == wanted[2]]
        return web.json_response({"customJobs": found} if found else {})

    async def _cancel_custom(self, request: web.Request) -> web.StreamResponse:
        self.calls["cancel"] += 1
        job = self.custom[request.match_info["id"]]
        await asyncio.sleep(_CANCELLED_AFTER_S)
        set_state(job, "CANCELLED", endTime=now())
        return web.json_response({})

    async def _run_custom(self, job: dict[str, Any]) -> None:
        await asyncio.sleep(0.05)
        set_state(job, "RUNNING", startTime=now())
        await asyncio.sleep(self.run_s)
        if not self.runs or job["state"] != "JOB_STATE_RUNNING":
            return
        status = await asyncio.to_thread(self._contain, job["jobSpec"]["workerPoolSpecs"][0]["containerSpec"])
        if status:
            message = self.fail_with or f"The replica workerpool0-0 exited with a non-zero status of {status}."
            set_state(job, "FAILED", error={"code": 3, "message": message}, endTime=now())
        else:
            set_state(job, "SUCCEEDED", endTime=now())

    def _contain(self, container: dict[str, Any]) -> int:
        """Run a container with the bucket as files, and take what it wrote back into the bucket."""
        if self.fail_with:
            return 1
        mount = self.folder / "gcs" / self.bucket
        for name, (data, _) in self.objects.items():
            path = mount / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        arguments = [*container["command"], *container["args"]]
        arguments = [text.replace(f"{_MOUNT}/", f"{self.folder / 'gcs'}/") for text in arguments]
        for run in mount.glob("**/runs/*/run.json"):
            run.write_text(run.read_text().replace(f'"{_MOUNT}/', f'"{self.folder / "gcs"}/'))
        environment = {**os.environ, "PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while done.poll() is None:
            self._take_back(mount)
            time.sleep(0.2)
        self._take_back(mount)
        self.stderr = done.stderr.read().decode() if done.stderr else ""
        return done.returncode

    def _take_back(self, mount: Path) -> None:
        for path in mount.glob("**/runs/**/*"):
            name = path.relative_to(mount).as_posix()
            if path.is_file() and path.name != "run.json":
                data = path.read_bytes()
                if self.objects.get(name, (None, 0))[0] != data:
                    self._put(name, data)

    # --- what is refused ------------------------------------------------------------------------

    def _problem(self, body: dict[str, Any]) -> str:
        if not body.get("displayName") or len(body["displayName"]) > 128:
            return "displayName must have 1 to 128 characters."
        for name, label in body.get("labels", {}).items():
            if not _LABEL_NAME.fullmatch(name) or not _LABEL.fullmatch(label):
                return f"Invalid label: {name}={label}."
        spec = body.get("jobSpec", {})
        timeout = spec.get("scheduling", {}).get("timeout", "604800s")
        if not re.fullmatch(r"[0-9]+s", timeout) or int(timeout[:-1]) > 604800:
            return "Job timeout must be at most 7 days."
        output = spec.get("baseOutputDirectory", {}).get("outputUriPrefix", "")
        if not output.startswith(f"gs://{self.bucket}/"):
            return f"The bucket of {output!r} does not exist or cannot be accessed."
        pools = spec.get("workerPoolSpecs", [])
        if not pools or str(pools[0].get("replicaCount")) != "1":
            return "The first worker pool must have exactly one replica."
        return self._pool_problem(pools[0])

    def _pool_problem(self, pool: dict[str, Any]) -> str:
        machine = pool.get("machineSpec", {})
        kind, accelerator = machine.get("machineType"), machine.get("acceleratorType")
        count = int(machine.get("acceleratorCount", 0))
        if kind not in MACHINES:
            return f"Machine type {kind!r} is not supported."
        if accelerator is not None and accelerator not in ACCELERATORS:
            return f"Invalid value at 'machine_spec.accelerator_type': {accelerator!r}."
        if (accelerator, count) not in MACHINES[kind]:
            return f"Accelerator type {accelerator!r} with count {count} is not supported for machine type {kind!r}."
        if not 100 <= int(pool.get("diskSpec", {}).get("bootDiskSizeGb", 100)) <= 64000:
            return "bootDiskSizeGb must be between 100 and 64000."
        if not pool.get("containerSpec", {}).get("imageUri"):
            return "containerSpec.imageUri is required."
        return ""
