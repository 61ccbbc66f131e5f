"""The machines of Vertex AI that a student can be trained on, as data: their GPUs, and what an hour costs.

Vertex AI takes a machine type with its own accelerators and no others. A type that is not here is passed on as it is
given, and its price has to be given too.
"""

from __future__ import annotations

from typing import NamedTuple

from po_distill.errors import SettingsError
from po_distill.records import Record

PRICES_AS_OF = "November 2026"
PRICES_SOURCE = (
    "approximate prices of custom training in us-central1, not checked against cloud.google.com/vertex-ai/pricing"
)


class Machine(Record):
    """A machine with its accelerators."""

    machine_type: str
    accelerator_type: str | None
    accelerator_count: int
    price_per_hour_usd: float | None  # accelerators included; None: not known


class _Type(NamedTuple):
    accelerator: str
    accelerators: int
    price_usd: float


_BUILT_IN = {  # machine types that come with their GPUs
    "a2-highgpu-1g": _Type("NVIDIA_TESLA_A100", 1, 4.43),
    "a2-highgpu-2g": _Type("NVIDIA_TESLA_A100", 2, 8.86),
    "a2-highgpu-4g": _Type("NVIDIA_TESLA_A100", 4, 17.71),
    "a2-highgpu-8g": _Type("NVIDIA_TESLA_A100", 8, 35.41),
    "a2-ultragpu-1g": _Type("NVIDIA_A100_80GB", 1, 5.83),
    "a2-ultragpu-2g": _Type("NVIDIA_A100_80GB", 2, 11.66),
    "a2-ultragpu-4g": _Type("NVIDIA_A100_80GB", 4, 23.32),
    "a2-ultragpu-8g": _Type("NVIDIA_A100_80GB", 8, 46.64),
    "a3-highgpu-8g": _Type("NVIDIA_H100_80GB", 8, 101.49),
    "g2-standard-4": _Type("NVIDIA_L4", 1, 0.82),
    "g2-standard-8": _Type("NVIDIA_L4", 1, 0.99),
    "g2-standard-12": _Type("NVIDIA_L4", 1, 1.16),
    "g2-standard-24": _Type("NVIDIA_L4", 2, 2.31),
    "g2-standard-48": _Type("NVIDIA_L4", 4, 4.61),
}
_ATTACHABLE = {"NVIDIA_TESLA_T4": 0.41, "NVIDIA_TESLA_V100": 2.86}  # to an n1 machine: 1, 2, 4 or 8, dollars each
_N1 = {"n1-standard-4": 0.22, "n1-standard-8": 0.44, "n1-standard-16": 0.88, "n1-standard-32": 1.75}
_COUNTS = (1, 2, 4, 8)


def find_machine(
    machine_type: str, accelerator: str | None, count: int | None, price_per_hour_usd: float | None
) -> Machine:
    """The machine that is meant; what is not said is taken from the table. Raises SettingsError for wrong pairs."""
    built_in = _BUILT_IN.get(machine_type)
    if built_in:
        if accelerator not in (None, built_in.accelerator) or count not in (None, built_in.accelerators):
            raise SettingsError(
                f"A {machine_type} comes with {built_in.accelerators} x {built_in.accelerator}, "
                f"not with {count or built_in.accelerators} x {accelerator or built_in.accelerator}.",
                "Leave the options accelerator and accelerator_count out, or name another machine.",
            )
        accelerator, count, price = built_in.accelerator, built_in.accelerators, built_in.price_usd
    elif machine_type in _N1:
        accelerator, count = accelerator or "NVIDIA_TESLA_T4", count or 1
        if accelerator not in _ATTACHABLE or count not in _COUNTS:
            raise SettingsError(
                f"A {machine_type} does not take {count} x {accelerator}.",
                f"It takes 1, 2, 4 or 8 of {' or '.join(_ATTACHABLE)}.",
            )
        price = _N1[machine_type] + count * _ATTACHABLE[accelerator]
    else:
        price, count = None, count or (1 if accelerator else 0)
    return Machine(
        machine_type=machine_type,
        accelerator_type=accelerator,
        accelerator_count=count or 0,
        price_per_hour_usd=price_per_hour_usd if price_per_hour_usd is not None else price,
    )
