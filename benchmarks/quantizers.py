"""How fast the block formats of a GGUF are made on one core: ours, libgguf's (ggml's C) and the `gguf` package's numpy.

    python benchmarks/quantizers.py            # half a minute
    python benchmarks/quantizers.py --json     # <kind>_<maker>_gb_s, ratio_q6_k, ratio_q4_0_numpy, differing

Input is float32 with the values of a float16 checkpoint; GB are those of the float32. libgguf puts large arrays on
several threads, so it gets small ones. `ratio_q6_k` is ours over libgguf, `ratio_q4_0_numpy` numpy over libgguf, and
`differing` counts bytes that are not libgguf's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import libgguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from po_distill.weights.gguf_q6_k import quantize_q6_k
from po_distill.weights.gguf_quantization import size_bytes

COLUMNS = 2048
SMALL_ROWS = 32  # libgguf's own threads begin above
Rows = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help=f"rows of {COLUMNS:,} values")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.rows, given.rounds)
    print(json.dumps(found) if given.json else "\n".join(f"{name:<24}{value:.3f}" for name, value in found.items()))


def measure(rows: int, rounds: int) -> dict[str, float]:
    """The figures; the makers take turns, and each figure is a median over the rounds."""
    values = (np.random.default_rng(0).standard_normal((rows, COLUMNS)) * 0.02).astype(np.float16).astype(np.float32)
    makers: dict[str, Callable[[Bytes], None]] = {
        "q6_k_ours": lambda out: quantize_q6_k(values, out),
        "q6_k_libgguf": lambda out: _by_libgguf(values, "Q6_K", out),
        "q4_0_numpy": lambda out: np.copyto(out, quantize(values, GGMLQuantizationType.Q4_0).reshape(-1)),
        "q4_0_libgguf": lambda out: _by_libgguf(values, "Q4_0", out),
    }
    outputs = {name: np.empty(size_bytes(values.shape, name[:4].upper()), np.uint8) for name in makers}
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, make in makers.items():
            started = time.perf_counter()
            make(outputs[name])
            seconds[name].append(time.perf_counter() - started)
    pace = {name: values.nbytes / 1e9 / statistics.median(times) for name, times in seconds.items()}
    return {
        **{f"{name}_gb_s": found for name, found in pace.items()},
        "ratio_q6_k": pace["q6_k_ours"] / pace["q6_k_libgguf"],
        "ratio_q4_0_numpy": pace["q4_0_numpy"] / pace["q4_0_libgguf"],
        "differing": float(
            (outputs["q6_k_ours"] != outputs["q6_k_libgguf"]).sum()
            + (outputs["q4_0_numpy"] != outputs["q4_0_libgguf"]).sum()
        ),
    }


def _by_libgguf(values: Rows, kind: str, out: Bytes) -> None:
    row_bytes = len(out) // len(values)
    for first in range(0, len(values), SMALL_ROWS):
        piece = values[first : first + SMALL_ROWS]
        target = out[first * row_bytes : (first + len(piece)) * row_bytes]
        libgguf.quantize_rows_into_raw(libgguf.GGMLQuantizationType[kind], piece, target, *piece.shape)


if __name__ == "__main__":
    main()
