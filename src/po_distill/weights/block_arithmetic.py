"""What happens to the numbers of a block: widened to float32, added to, and rounded once, in memory that is used again.

torch does it where it is installed, several times as fast as numpy, and with the same bits but for the order
in which a matrix product of float32 is summed. The arrays are small enough for a processor's cache.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

HalfDtype = Literal["float16", "bfloat16"]
Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint16]  # float16 or bfloat16, as 16-bit words

_EXPONENT = {"float16": 0x7C00, "bfloat16": 0x7F80}  # all ones: infinity or not a number
_SIGN = 0x8000
_HAS_TORCH = importlib.util.find_spec("torch") is not None


def use_one_thread() -> None:
    """Keep the libraries from splitting one small array over processors: the blocks are split over them already."""
    if _HAS_TORCH:
        import torch

        torch.set_num_threads(1)


@contextmanager
def whole_threads_afterwards() -> Iterator[None]:
    """Give the libraries their threads back when the block ends."""
    if not _HAS_TORCH:
        yield
        return
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def widen(stored: npt.NDArray[Any], dtype: str, out: Floats) -> None:
    """Stored values in float32; `dtype` is theirs in safetensors' words (BF16 comes as 16-bit words)."""
    if dtype == "BF16":
        if _HAS_TORCH:
            _tensor(out).copy_(_halves(stored, "bfloat16"))
        else:
            np.left_shift(stored, 16, out=out.view(np.uint32), dtype=np.uint32)
    elif dtype == "F16" and _HAS_TORCH:
        _tensor(out).copy_(_halves(stored.view(np.uint16), "float16"))
    else:
        np.copyto(out, stored, casting="same_kind")


def add_product(left: Floats, right: Floats, scale: float, product: Floats, out: Floats) -> None:
    """out += scale * (left @ right), in the order in which peft does it; `product` is memory of out's shape."""
    if _HAS_TORCH:
        import torch

        torch.matmul(_tensor(left), _tensor(right), out=_tensor(product))
        _tensor(out).add_(_tensor(product).mul_(scale))
    else:
        np.matmul(left, right, out=product)
        product *= np.float32(scale)
        out += product


def narrow(values: Floats, dtype: HalfDtype, out: Words) -> None:
    """The nearest value of 16 bits, ties to even; what is beyond its range becomes infinite."""
    if _HAS_TORCH:
        _halves(out, dtype).copy_(_tensor(values))
    elif dtype == "float16":
        with np.errstate(over="ignore"):
            np.copyto(out.view(np.float16), values, casting="same_kind")
    else:
        words = values.view(np.uint32)
        rounded = (words + 0x7FFF + ((words >> 16) & 1)) >> 16
        np.copyto(out, np.where(np.isnan(values), 0x7FC0, rounded), casting="unsafe")


def is_finite(words: Words, dtype: HalfDtype) -> bool:
    """Whether no value is infinite or not a number."""
    if not words.size:
        return True
    # Without a sign words rise with the size of the value; the negative ones stand above all others, by their highest
    # bit, which as a signed number's makes them the lowest.
    largest_positive, largest_negative = int(words.view(np.int16).max()), int(words.max()) - _SIGN
    return largest_positive < _EXPONENT[dtype] and largest_negative < _EXPONENT[dtype]


def _tensor(values: Floats) -> Any:
    import torch

    return torch.from_numpy(values)


def _halves(words: npt.NDArray[Any], dtype: HalfDtype) -> Any:
    import torch

    return torch.from_numpy(words.view(np.int16)).view(torch.float16 if dtype == "float16" else torch.bfloat16)
