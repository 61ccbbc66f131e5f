import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from po_distill import LoRATrainer
from po_distill.artifacts import write_jsonl
from po_distill.errors import SettingsError
from po_distill.launchers.accelerate import AccelerateLauncher
from po_distill.plugins import open_launcher
from po_distill.records import Adapter, LoRASettings
from tiny_models import tiny_model

pytestmark = pytest.mark.slow

TWO = {"launcher": "accelerate", "launcher_options": {"processes": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny base, rows for it, and held-out ones."""
    folder = tmp_path_factory.mktemp("accelerate")
    tiny_model(folder / "base")
    for name, count in (("rows", 9), ("held_out", 4)):
        rows = [
            {"prompt": f"Name product {n} of {name}.", "response": f"The product vision {n % 4}. " * (3 + n % 5)}
            for n in range(count)
        ]
        write_jsonl(folder / f"{name}.jsonl", rows)
    yield folder


def trained(folder: Path, name: str, **settings: Any) -> Adapter:
    """An adapter of five steps, the last of which has a single row."""
    lora = LoRASettings(rank=4, alpha=8, dropout=0.0)
    trainer = LoRATrainer(
        base=str(folder / "base"), lora=lora, epochs=1.9, batch=4, learning_rate=5e-3, max_seq_len=256, **settings
    )
    held_out = folder / "held_out.jsonl"
    return trainer.train(folder / "rows.jsonl", folder / name, validation=held_out, log_path=folder / f"{name}.log")


def events(folder: Path, name: str, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / f"{name}.log").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


# --- training in two processes --------------------------------------------------------------------


def test_two_processes_train_the_adapter_that_one_trains(folder: Path) -> None:
    one, two = trained(folder, "one"), trained(folder, "two", **TWO)
    assert one.training is not None
    assert two.training is not None
    assert one.training.heldout_loss is not None
    assert two.training.steps == one.training.steps == 5
    assert two.training.heldout_loss == pytest.approx(one.training.heldout_loss, rel=1e-3)
    alone, shared = (events(folder, name, "step") for name in ("one", "two"))
    assert [line["loss"] for line in shared] == pytest.approx([line["loss"] for line in alone], rel=1e-4)
    assert [line["tokens"] for line in shared[:-1]] == [line["tokens"] for line in alone[:-1]]
    weights = {name: load_file(folder / name / "adapter/adapter_model.safetensors") for name in ("one", "two")}
    assert weights["one"].keys() == weights["two"].keys()
    for name, weight in weights["one"].items():
        torch.testing.assert_close(weights["two"][name], weight, rtol=1e-3, atol=1e-5)
    assert len(events(folder, "two", "plan")) == 1  # one process plans and writes


def test_a_student_whose_weights_are_spread_over_processes_learns_what_a_whole_one_learns(folder: Path) -> None:
    script = Path(__file__).with_name("sharded_student.py")
    command = [sys.executable, str(script), str(folder / "base"), str(folder)]
    assert AccelerateLauncher(processes=2).run(command, {}) == 0
    found = [json.loads((folder / f"{number}.json").read_text()) for number in (0, 1)]
    for process in found:
        whole, sharded = process["whole"], process["sharded"]
        assert sharded["loss"] == pytest.approx(whole["loss"], rel=1e-3)
        assert sharded["names"] == whole["names"]
        assert sharded["sums"] == pytest.approx(whole["sums"], rel=1e-3)
        assert sharded["held"] < 0.7 * whole["all"]


# --- the processes --------------------------------------------------------------------------------


def test_each_process_gets_the_command_and_the_first_failure_is_the_status(tmp_path: Path) -> None:
    given = ["two words", "$HOME", "*", "", "--num_processes", "ä"]
    code = (
        "import json, os, pathlib, sys\n"
        f"note = pathlib.Path({str(tmp_path)!r}, os.environ['RANK'])\n"
        "note.write_text(json.dumps([os.environ['WORLD_SIZE'], os.environ['GIVEN'], *sys.argv[1:]]))\n"
        "sys.exit(7 if os.environ['RANK'] == '1' else 0)"
    )
    assert AccelerateLauncher(processes=2).run([sys.executable, "-c", code, *given], {"GIVEN": "!"}) == 7
    assert {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()} == {
        number: ["2", "!", *given] for number in ("0", "1")
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_parent_that_ends_takes_all_processes_with_it(tmp_path: Path, number: signal.Signals) -> None:
    # The processes watch for their starter's end as a training run does.
    child = (
        "import os, pathlib, time\nfrom po_distill.launchers.accelerate_entry import _end_with_parent\n"
        f"_end_with_parent()\npathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text(str(os.getpid()))\n"
        "time.sleep(120)"
    )
    code = (
        "import sys\nfrom po_distill.launchers.accelerate import AccelerateLauncher\n"
        f"AccelerateLauncher(processes=2).run([sys.executable, '-c', {child!r}], {{}})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    _wait_for(lambda: len(_numbers(tmp_path)) == 2)
    running = _numbers(tmp_path)
    parent.send_signal(number)
    assert parent.wait(timeout=60) == (143 if number == signal.SIGTERM else -9)
    _wait_for(lambda: not any(_runs(pid) for pid in running))


def _numbers(folder: Path) -> list[int]:
    return [int(text) for path in folder.iterdir() if (text := path.read_text())]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_for(what: Any, timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


# --- options and config ---------------------------------------------------------------------------


def test_the_config_is_one_that_accelerate_reads(tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    several = {"machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.5", "main_process_port": 29400}
    path = tmp_path / "accelerate.yaml"
    path.write_text(yaml.safe_dump(AccelerateLauncher(processes=4, fsdp_offload=True, **several).config(4)))
    config = load_config_from_file(str(path))
    assert (config.num_processes, config.num_machines, config.machine_rank) == (4, 2, 1)
    assert (config.main_process_ip, config.main_process_port) == ("10.0.0.5", 29400)
    assert config.distributed_type == "FSDP"
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.fsdp_config["fsdp_offload_params"] is True
    assert config.mixed_precision == "no"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"proceses": 2}, "no option 'proceses'. Did you mean 'processes'"),
        ({"processes": 0}, "The option processes of the launcher accelerate is 0"),
        ({"processes": 3, "machines": 2}, "cannot be shared evenly among 2 machines"),
        ({"processes": 2, "machines": 2}, "need the address"),
        ({"machines": 2, "machine_rank": 2}, "is not among 2 machines"),
    ],
)
def test_options_that_cannot_be_right_are_refused_by_name(options: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        open_launcher("accelerate", options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_weights_are_not_spread_and_processes_have_to_be_counted() -> None:
    with pytest.raises(SettingsError, match="over GPUs alone"):
        AccelerateLauncher(processes=2, fsdp=True).run([sys.executable, "-c", ""], {})
    with pytest.raises(SettingsError, match="no GPU here to count"):
        AccelerateLauncher().run([sys.executable, "-c", ""], {})


def test_the_launcher_local_takes_no_options() -> None:
    with pytest.raises(SettingsError, match=r"The launcher local has no option 'processes'\. Its options: none"):
        open_launcher("local", {"processes": 2})
