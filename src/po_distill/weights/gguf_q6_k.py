"""ggml's Q6_K, to the bit, in numpy: many groups side by side, each summed in ggml's own order.

A row is cut into super-blocks of 256 values, these into groups of 16. A group's scale is the best of 19 tries, by the
squared error weighted with the squared value. The arithmetic follows ggml's src/ggml-quants.c (quantize_row_q6_K_ref
and make_qx_quants), which takes one value after the other; here a step is made for all groups of a piece at once, which
is more than twice as fast on a core (benchmarks/quantizers.py). It is what large vocabularies wait for: the output
layer.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK_ELEMENTS, BLOCK_BYTES = 256, 210
_GROUP = 16
_GROUPS = BLOCK_ELEMENTS // _GROUP
_LOWEST, _HIGHEST = np.float32(-32), np.float32(31)
_NOTHING = np.float32(1e-15)  # a group of values below it is taken for zeros
_PIECE_BLOCKS = 384  # super-blocks that are worked on together: they stay in a core's cache
_FIRST = np.float32(-32)
_OTHERS = tuple(-(np.float32(32) + np.float32(0.1) * np.float32(step)) for step in range(-9, 10) if step)

Floats = npt.NDArray[np.float32]
_own = threading.local()


def quantize_q6_k(values: Floats, out: npt.NDArray[np.uint8]) -> None:
    """Rows of finite float32, shape (rows, a multiple of 256), into `out`: 210 bytes per 256 values, row behind row."""
    blocks = values.reshape(-1, BLOCK_ELEMENTS)
    target = out.reshape(-1, BLOCK_BYTES)
    for first in range(0, len(blocks), _PIECE_BLOCKS):
        _quantize(blocks[first : first + _PIECE_BLOCKS], target[first : first + _PIECE_BLOCKS])


def _quantize(blocks: Floats, out: npt.NDArray[np.uint8]) -> None:
    count = len(blocks)
    space = _Space.of_thread(count * _GROUPS)
    x = space.x
    # (16 values of a group, all groups); the groups of a super-block lie count apart.
    np.copyto(x.reshape(_GROUP, _GROUPS, count), blocks.reshape(count, _GROUPS, _GROUP).transpose(2, 1, 0))
    _search(space)
    scales = space.best[0].reshape(_GROUPS, count)
    largest = np.take_along_axis(scales, np.abs(scales).argmax(axis=0, keepdims=True), axis=0)[0]
    is_empty = np.abs(largest) < _NOTHING
    inverse = np.float32(-128) / np.where(is_empty, np.float32(1), largest)
    d = np.where(is_empty, np.float32(0), np.float32(1) / inverse).astype(np.float16)
    steps = np.minimum(np.float32(127), np.rint(inverse * scales))
    steps[:, is_empty] = 0
    levels = _levels(space, d.astype(np.float32) * steps)
    levels.reshape(_GROUP, _GROUPS, count)[:, :, is_empty] = 0
    # (super-block, value), as the bytes take them
    by_value = np.ascontiguousarray(levels.reshape(_GROUP, _GROUPS, count).transpose(2, 1, 0)).reshape(count, 2, 4, 32)
    low, high = by_value & 0xF, by_value >> 4
    out[:, :128] = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2).reshape(
        count, 128
    )
    out[:, 128:192] = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).reshape(count, 64)
    out[:, 192:208] = steps.T.astype(np.int8).view(np.uint8)
    out[:, 208:] = d.view(np.uint8).reshape(count, 2)


class _Space:
    """A thread's memory for one piece: arrays of (16, groups) and of (groups,)."""

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.x, self.weight, self.weighted, self.level, self.term = (
            np.empty((_GROUP, groups), np.float32) for _ in range(5)
        )
        # Of the best try and of the one at hand: the scale, its score, and what the values were multiplied by.
        self.best, self.found = (np.empty((3, groups), np.float32) for _ in range(2))
        self.product, self.square, self.left, self.right = (np.empty(groups, np.float32) for _ in range(4))
        self.is_better, self.mask = np.empty(groups, np.bool_), np.empty(groups, np.int32)

    @staticmethod
    def of_thread(groups: int) -> _Space:
        space: _Space | None = getattr(_own, "space", None)
        if space is None or space.groups != groups:
            _own.space = space = _Space(groups)
        return space


def _search(space: _Space) -> None:
    """Each group's best try into `space.best`; zeros where all values are zeros."""
    x = space.x
    largest = _largest(x)
    is_zero = np.abs(largest) < _NOTHING
    largest[is_zero] = 1
    np.multiply(x, x, out=space.weight)
    np.multiply(space.weight, x, out=space.weighted)
    with np.errstate(divide="ignore", invalid="ignore"):  # of groups whose levels are all 0; none is better for it
        _try(space, _FIRST, largest, space.best)
        space.best[:2, space.square == 0] = 0
        for factor in _OTHERS:
            _try(space, factor, largest, space.found)
            np.multiply(space.product, space.product, out=space.left)
            np.multiply(space.best[1], space.square, out=space.right)
            np.greater(space.left, space.right, out=space.is_better)
            _keep_better(space)
    space.best[:, is_zero] = 0


def _largest(x: Floats) -> Floats:
    """Each group's value that is farthest from 0, the first of several."""
    high, low = x.max(axis=0), x.min(axis=0)
    found = np.where(high > -low, high, low)
    ties = np.flatnonzero(high == -low)
    tied = x[:, ties]
    found[ties] = np.take_along_axis(tied, np.abs(tied).argmax(axis=0, keepdims=True), axis=0)[0]
    return found


def _try(space: _Space, factor: np.float32, largest: Floats, found: Floats) -> None:
    """Sum weight * x * level and weight * level ** 2, the levels being x * factor / largest: so scale and score."""
    scale, score, inverse = found
    np.divide(factor, largest, out=inverse)
    np.multiply(space.x, inverse, out=space.level)
    _round(space.level)
    np.multiply(space.weighted, space.level, out=space.term)
    np.add.reduce(space.term, axis=0, out=space.product)  # row after row: ggml's order
    np.multiply(space.weight, space.level, out=space.term)
    space.term *= space.level
    np.add.reduce(space.term, axis=0, out=space.square)
    np.divide(space.product, space.square, out=scale)
    np.multiply(scale, space.product, out=score)


def _keep_better(space: _Space) -> None:
    """Take over what was found where it is better: bit by bit, which is much faster than numpy's masked copies."""
    np.negative(space.is_better.view(np.int8), out=space.mask, dtype=np.int32)  # all bits, or none
    best, found = space.best.view(np.int32), space.found.view(np.int32)
    np.bitwise_xor(best, found, out=found)
    np.bitwise_and(found, space.mask, out=found)
    np.bitwise_xor(best, found, out=best)


def _levels(space: _Space, step: Floats) -> npt.NDArray[np.uint8]:
    """What is stored of each value, 0 to 63: of the rounded scale, or where that is 0, of the one that was found."""
    flat = step.reshape(-1)
    is_nothing = flat == 0
    np.divide(space.x, np.where(is_nothing, np.float32(1), flat), out=space.level)
    if is_nothing.any():
        inverse = space.best[2, is_nothing]
        found = space.x[:, is_nothing] * inverse
        found[:, inverse == 0] = _LOWEST
        space.level[:, is_nothing] = found
    _round(space.level)
    space.level -= _LOWEST
    levels: npt.NDArray[np.uint8] = space.level.astype(np.uint8)
    return levels


def _round(values: npt.NDArray[Any]) -> None:
    np.rint(values, out=values)
    np.clip(values, _LOWEST, _HIGHEST, out=values)  # several times as fast as maximum and minimum
