"""Rounding to float16, by torch where it is installed (some 20 times as fast as numpy), the same bits either way."""

from __future__ import annotations

import importlib.util

import numpy as np
import numpy.typing as npt

_HAS_TORCH = importlib.util.find_spec("torch") is not None
# torch puts more elements than this on several threads, which costs more than it gains where the machine is busy.
_ONE_THREAD_ELEMENTS = 1 << 15


def to_float16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """The nearest float16 of each value, ties to even; beyond 65504 it is infinite."""
    if not _HAS_TORCH:
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    import torch

    rounded = np.empty(values.shape, np.float16)
    source, target = torch.from_numpy(np.ascontiguousarray(values)).view(-1), torch.from_numpy(rounded).view(-1)
    for start in range(0, source.numel(), _ONE_THREAD_ELEMENTS):
        piece = slice(start, start + _ONE_THREAD_ELEMENTS)
        target[piece].copy_(source[piece])
    return rounded
