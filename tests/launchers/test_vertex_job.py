import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.logins import service_account
from fakes.vertex_jobs import FakeJobVertex
from po_distill import DatasetBuilder, LoRATrainer, Teacher
from po_distill.artifacts import read_manifest, write_jsonl
from po_distill.cli import main
from po_distill.errors import ArtifactError, PODistillError, SettingsError, TrainingError
from po_distill.launchers.vertex_job import LABEL, VertexJobLauncher
from po_distill.launchers.vertex_service import as_json, as_message
from po_distill.plugins import open_launcher
from po_distill.records import LoRASettings, TrainingJob
from po_distill.roles.product_owner.role import ProductOwnerRole
from tiny_models import tiny_model

pytestmark = pytest.mark.slow

SMALL = {"lora": LoRASettings(rank=4, alpha=8, dropout=0.0), "batch": 4, "learning_rate": 5e-3, "max_seq_len": 256}


@pytest.fixture(autouse=True)
def no_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Name product {n}.", "response": "The product vision. " * 6} for n in range(8)]
    write_jsonl(path, rows)
    return path


def options(vertex: FakeJobVertex, folder: Path, **more: Any) -> dict[str, Any]:
    login = service_account(folder / "login.json", vertex)  # type: ignore[arg-type]
    return {
        "project": "test-project",
        "staging_bucket": "gs://po-bucket/training",
        "credentials_path": str(login),
        "endpoint": vertex.base_url,
        "storage_endpoint": vertex.base_url,
        "poll_s": 0.1,
        **more,
    }


def job(folder: Path, base: Path, data: Path, **changes: Any) -> TrainingJob:
    work = folder / "v1/.train"
    work.mkdir(parents=True, exist_ok=True)
    places = {"data_path": data, "base_path": base, "output_path": folder / "v1/adapter", "work_path": work}
    return TrainingJob.model_validate({**{k: str(v) for k, v in places.items()}, "base_name": "tiny", **changes})


# --- the whole way --------------------------------------------------------------------------------


def test_an_adapter_is_trained_in_a_job_and_comes_back(
    tmp_path: Path, base: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with FakeJobVertex(tmp_path / "cloud") as vertex:
        trainer = LoRATrainer(
            base=str(base),
            max_steps=3,
            launcher="vertex_job",
            launcher_options=options(vertex, tmp_path, poll_s=0.5),
            **SMALL,
        )
        adapter = trainer.train(data, tmp_path / "v1", log_path=tmp_path / "train.log")
        (sent,) = vertex.custom.values()
        bought = dict(vertex.calls)
        assert trainer_again_is_refused(trainer, data, tmp_path / "v1")
        assert vertex.calls["create"] == bought["create"] == 1
    assert adapter.path == str(tmp_path / "v1/adapter")
    assert adapter.training is not None
    assert adapter.training.steps == 3
    manifest = read_manifest(tmp_path / "v1")
    assert manifest is not None
    assert manifest.outputs["adapter/adapter_model.safetensors"] == adapter.digest
    steps = [line for line in (tmp_path / "train.log").read_text().splitlines() if '"event": "step"' in line]
    assert len(steps) == 3
    assert sent["labels"][LABEL]
    (installed,) = vertex.installed
    assert "--constraint" in installed
    assert installed.endswith("-py3-none-any.whl[train]")
    shown = capfd.readouterr().err
    assert "training plan:" in shown  # what the job printed
    assert "$4.43 an hour" in shown


def trainer_again_is_refused(trainer: LoRATrainer, data: Path, output: Path) -> bool:
    with pytest.raises(ArtifactError, match="never overwritten"):
        trainer.train(data, output)
    return True


def test_what_the_run_refuses_in_the_job_is_raised_here(tmp_path: Path, base: Path, data: Path) -> None:
    with FakeJobVertex(tmp_path / "cloud") as vertex:
        trainer = LoRATrainer(
            base=str(base),
            launcher="vertex_job",
            launcher_options=options(vertex, tmp_path),
            **{**SMALL, "max_seq_len": 20},
        )
        with pytest.raises(PODistillError, match="8 of 8 rows are longer than 20 tokens"):
            trainer.train(data, tmp_path / "v1")
    assert not (tmp_path / "v1/adapter").exists()


# --- killed, cancelled, failed --------------------------------------------------------------------

_WAIT = """
import json, sys
from pathlib import Path
from po_distill.launchers.vertex_job import VertexJobLauncher
from po_distill.records import TrainingJob
launcher = VertexJobLauncher(**json.loads(sys.argv[1]))
folder = Path(sys.argv[3]); folder.mkdir(exist_ok=True)
sys.exit(launcher.train(TrainingJob.model_validate_json(sys.argv[2]), folder, {}))
"""


def waiting(vertex: FakeJobVertex, given: dict[str, Any], wanted: TrainingJob, folder: Path) -> subprocess.Popen[str]:
    """A process that waits for a job that runs."""
    arguments = [sys.executable, "-c", _WAIT, json.dumps(given), wanted.model_dump_json(), str(folder)]
    child = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    vertex.wait_for(lambda: vertex.calls["poll"] > 1, timeout_s=120)
    return child


def test_a_killed_command_finds_its_job_again_and_pays_once(
    tmp_path: Path, base: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = job(tmp_path, base, data)
    with FakeJobVertex(tmp_path / "cloud", runs=False) as vertex:
        given = options(vertex, tmp_path)
        child = waiting(vertex, given, wanted, tmp_path / "fetched")
        child.kill()
        child.wait()
        (sent,) = vertex.custom.values()
        run = f"training/runs/{sent['labels'][LABEL]}"
        vertex._put(f"{run}/console.txt", b"step 1\n")
        vertex._put(f"{run}/adapter/adapter_model.safetensors", b"weights")
        vertex.finish(sent)
        (tmp_path / "fetched").mkdir(exist_ok=True)
        assert VertexJobLauncher(**given).train(wanted, tmp_path / "fetched", {}) == 0
        assert vertex.calls["create"] == 1
        assert len(vertex.custom) == 1
    assert (tmp_path / "fetched/adapter_model.safetensors").read_bytes() == b"weights"
    assert "no other one is started" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "on_interrupt", "state", "status"),
    [
        (signal.SIGINT, "ask", "CANCELLED", -signal.SIGINT),  # without a terminal there is nobody to ask
        (signal.SIGINT, "leave", "RUNNING", -signal.SIGINT),
        (signal.SIGTERM, "cancel", "RUNNING", 128 + signal.SIGTERM),
    ],
)
def test_ctrl_c_ends_the_job_and_a_termination_leaves_it(
    tmp_path: Path, base: Path, data: Path, number: signal.Signals, on_interrupt: str, state: str, status: int
) -> None:
    with FakeJobVertex(tmp_path / "cloud", runs=False) as vertex:
        given = options(vertex, tmp_path, on_interrupt=on_interrupt)
        child = waiting(vertex, given, job(tmp_path, base, data), tmp_path / "fetched")
        child.send_signal(number)
        _, shown = child.communicate(timeout=60)
        assert child.returncode == status
        (sent,) = vertex.custom.values()
        assert sent["state"] == f"JOB_STATE_{state}"
    assert ("was asked to end" if state == "CANCELLED" else "goes on, and costs") in shown


def test_a_job_that_fails_is_named_with_its_reason_and_the_next_command_starts_another(
    tmp_path: Path, base: Path, data: Path
) -> None:
    wanted = job(tmp_path, base, data)
    (tmp_path / "fetched").mkdir()
    with FakeJobVertex(tmp_path / "cloud") as vertex:
        vertex.fail_with, vertex.poll_503 = "The image cannot be pulled.", 1
        launcher = VertexJobLauncher(**options(vertex, tmp_path))
        for _ in range(2):
            with pytest.raises(TrainingError, match=r"ended as failed: The image cannot be pulled"):
                launcher.train(wanted, tmp_path / "fetched", {})
        assert vertex.calls["create"] == 2
        first, second = vertex.custom.values()
        assert first["labels"] == second["labels"]


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"machine": "n9-none"}, r"refused \(400\).*Machine type 'n9-none' is not supported"),
        ({"region": "moon-north1"}, r"refused \(404\).*moon-north1"),
        ({"staging_bucket": "gs://other-bucket"}, r"Cloud Storage refused \(403\)"),
        ({"max_hours": 200}, r"refused \(400\).*at most 7 days"),
        ({"disk_gb": 50}, r"refused \(400\).*bootDiskSizeGb"),
    ],
)
def test_what_the_service_refuses_is_said_with_a_way_out(
    tmp_path: Path, base: Path, data: Path, wrong: dict[str, Any], match: str
) -> None:
    with FakeJobVertex(tmp_path / "cloud") as vertex:
        launcher = VertexJobLauncher(**options(vertex, tmp_path, **wrong))
        with pytest.raises(TrainingError, match=match) as caught:
            launcher.train(job(tmp_path, base, data), tmp_path, {})
        assert caught.value.fix
        assert not vertex.custom


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"staging_bucket": None}, "needs a bucket"),
        ({"staging_bucket": "po-bucket"}, "names no bucket"),
        ({"project": None}, "needs the project"),
        ({"region": "us-central1/x"}, "The region of vertex_job is"),
        ({"accelerator": "NVIDIA_TESLA_T4"}, "a2-highgpu-1g comes with 1 x NVIDIA_TESLA_A100"),
        ({"machine": "n1-standard-8", "accelerator_count": 3}, "does not take 3 x NVIDIA_TESLA_T4"),
        ({"endpoint": "http://example.com"}, "would carry the access token in clear"),
        ({"acelerator": "NVIDIA_L4"}, "no option 'acelerator'"),
        ({"max_hours": "long"}, "The option max_hours of the launcher vertex_job is 'long'"),
    ],
)
def test_options_that_cannot_be_right_are_refused_before_anything_is_asked(wrong: dict[str, Any], match: str) -> None:
    given = {"project": "test-project", "staging_bucket": "gs://po-bucket", **wrong}
    with pytest.raises(SettingsError, match=match):
        open_launcher("vertex_job", given)


# --- what it would be -----------------------------------------------------------------------------


def test_a_description_is_a_valid_custom_job_and_costs_no_call(tmp_path: Path, base: Path, data: Path) -> None:
    launcher = VertexJobLauncher(
        project="test-project", staging_bucket="gs://po-bucket/x", endpoint="http://127.0.0.1:9"
    )
    wanted = job(tmp_path, base, data, minutes=30)
    described = launcher.describe(wanted)
    assert as_json(as_message(described))["jobSpec"]["workerPoolSpecs"][0]["machineSpec"] == {
        "machineType": "a2-highgpu-1g",
        "acceleratorType": "NVIDIA_TESLA_A100",
        "acceleratorCount": 1,
    }
    assert described == launcher.describe(wanted)
    assert launcher.describe(job(tmp_path, base, data, seed=8))["labels"] != described["labels"]
    assert "about $3.32 for 30 minutes" in launcher.estimate(wanted)
    assert "at most $53.16 in 12 hours" in launcher.estimate(wanted)


def test_a_price_of_the_users_own_counts() -> None:
    given = {"project": "test-project", "staging_bucket": "gs://po-bucket", "machine": "a9-future-1g"}
    wanted = TrainingJob(data_path="", base_path="", base_name="", output_path="", work_path="", minutes=45)
    assert "is not known here" in VertexJobLauncher(**given).estimate(wanted)
    assert "about $2.00" in VertexJobLauncher(**given, price_per_hour=2.0).estimate(wanted)


def test_the_dry_run_of_the_command_prints_the_job_alone(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    role = ProductOwnerRole()
    completions = Teacher(role, provider="offline").answer(role.generate_concepts(60, seed=7))
    dataset = DatasetBuilder(role).build(completions, tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    given = ["--launcher-option", "project=test-project", "--launcher-option", "staging_bucket=gs://po-bucket"]
    command = [
        "po-distill",
        "train",
        "--data",
        dataset.paths["train"],
        "--base",
        str(base),
        "--dry-run",
        "--launcher",
        "vertex_job",
    ]
    assert status_of([*command, *given, "--launcher-option", "machine=g2-standard-24"], monkeypatch) == 0
    shown = capsys.readouterr()
    pool = as_json(as_message(json.loads(shown.out)))["jobSpec"]["workerPoolSpecs"][0]
    assert pool["machineSpec"]["acceleratorCount"] == 2
    assert "$2.31 an hour" in shown.err
    assert status_of([*command, "--launcher-option", "projekt=x"], monkeypatch) == 1
    assert "no option 'projekt'" in capsys.readouterr().err
    assert not (tmp_path / "artifacts/models").exists()


def status_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0
