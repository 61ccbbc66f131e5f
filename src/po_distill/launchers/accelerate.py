"""The launcher `accelerate`: several processes, on this machine or on several, by `accelerate launch`."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt, validate_call

from po_distill.errors import MissingExtraError, SettingsError
from po_distill.launchers.local import LocalLauncher


class AccelerateLauncher:
    """Runs a command in several processes at once, which end when we end.

    `processes` are those of all machines together, by default one for each GPU here. On several machines the same
    command is given on each with its own `machine_rank`; `main_process_ip` is the machine of rank 0. `fsdp` spreads
    the weights over the processes in place of copying them to each, `fsdp_offload` keeps them in the memory of the
    processor between their uses.
    """

    @validate_call
    def __init__(
        self,
        *,
        processes: PositiveInt | None = None,
        machines: PositiveInt = 1,
        machine_rank: NonNegativeInt = 0,
        main_process_ip: str | None = None,
        main_process_port: PositiveInt | None = None,
        fsdp: bool = False,
        fsdp_offload: bool = False,
    ) -> None:
        self._processes, self._machines, self._machine_rank = processes, machines, machine_rank
        self._address = main_process_ip, main_process_port
        self._fsdp, self._fsdp_offload = fsdp or fsdp_offload, fsdp_offload
        if processes is not None and processes % machines:
            raise SettingsError(
                f"{processes} processes cannot be shared evenly among {machines} machines.",
                f"`processes` counts those of all machines: give a multiple of {machines}.",
            )
        if machine_rank >= machines:
            raise SettingsError(
                f"The machine_rank {machine_rank} is not among {machines} machines.",
                "Give each machine its own: 0, 1, ... (the option machines says how many there are).",
            )
        if machines > 1 and None in self._address:
            raise SettingsError(
                "Several machines need the address at which they meet.",
                "Give main_process_ip, the machine of rank 0, and main_process_port, a free port there.",
            )

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run the command in each process; the exit status of the first that failed.

        `environment` goes on top of ours. Ctrl-C and SIGTERM end all of them first.
        """
        if importlib.util.find_spec("accelerate") is None:
            raise MissingExtraError("accelerate", "train", "The launcher accelerate")
        if self._fsdp and not _gpus():
            raise SettingsError(
                "accelerate spreads weights (fsdp) over GPUs alone, and there is none here.",
                "Leave the option fsdp out: each process then holds all weights.",
            )
        processes = self._processes or _gpus() * self._machines
        if not processes:
            raise SettingsError(
                "There is no GPU here to count processes by.", "Say how many: --launcher-option processes=2."
            )
        if processes == 1:
            return LocalLauncher().run(command, environment)
        threads = max(1, (os.cpu_count() or 1) * self._machines // processes)
        with tempfile.TemporaryDirectory(prefix="po_distill_accelerate_") as folder:
            config = Path(folder) / "accelerate.yaml"
            config.write_text(_as_yaml(self.config(processes)), encoding="utf-8")
            entry = [sys.executable, "-m", "po_distill.launchers.accelerate_entry"]
            return LocalLauncher().run([*entry, str(config), str(threads), *command], environment)

    def config(self, processes: int) -> dict[str, Any]:
        """What `accelerate launch` reads from its --config_file."""
        ip, port = self._address
        return {
            "compute_environment": "LOCAL_MACHINE",
            # accelerate has torch's launcher start several processes under this name alone; where there is no GPU,
            # the processes themselves find that out, and talk by gloo.
            "distributed_type": "FSDP" if self._fsdp else "MULTI_GPU",
            "num_processes": processes,
            "num_machines": self._machines,
            "machine_rank": self._machine_rank,
            "main_process_ip": ip,
            "main_process_port": port if port is not None else 0,  # 0: a free one
            "same_network": True,
            "mixed_precision": "no",  # the base is loaded in its precision, and LoRA's weights are fp32
            "use_cpu": False,
            **({"fsdp_config": self._fsdp_config()} if self._fsdp else {}),
        }

    def _fsdp_config(self) -> dict[str, Any]:
        return {
            "fsdp_version": 2,  # each weight keeps its own dtype: frozen bf16 beside learning fp32
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_offload_params": self._fsdp_offload,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            "fsdp_cpu_ram_efficient_loading": False,
        }


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _as_yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False)
