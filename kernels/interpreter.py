"""Make Triton's interpreter compute what a GPU would.

As released (3.8) it multiplies the bit patterns of bfloat16 operands in ``tl.dot``, truncates where
a GPU rounds to the nearest bfloat16, ignores ``input_precision``, and sums one number after another
where the threads of a GPU sum in a tree. ``mend`` puts all four right; ``shuffled`` runs the
programs of a launch in random order, as a GPU may.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

#: For each way of multiplying float32 numbers: mantissa bits dropped, and terms a number is split
#: into. Products of terms whose ranks add up to less than the number of terms are kept.
SPLITS = {"tf32": (13, 1), "tf32x3": (13, 2), "bf16x3": (16, 2), "bf16x6": (16, 3)}


def mend() -> None:
    """Replace the interpreter's dot product, its sums and its rounding to bfloat16."""
    builder = interpreter.InterpreterBuilder
    if builder.create_dot is _dot:
        return
    builder.create_dot = _dot
    one_by_one = interpreter.ReduceOps.sum

    def in_a_tree(self: Any, source: Any) -> Any:
        total = source.handle.data
        if self.keep_dims or total.dtype != np.float32:
            return one_by_one(self, source)
        total = total.ravel() if self.axis is None else np.moveaxis(total, self.axis, 0)
        while len(total) > 1:
            half = len(total) // 2  # sizes are powers of two
            total = total[:half] + total[half:]
        return self.to_tensor(total[0], source.dtype)

    interpreter.ReduceOps.sum = in_a_tree
    released = builder.cast_impl

    def cast(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return interpreter.TensorHandle(_to_bfloat16(source.data), target.scalar)
        return released(self, source, target)

    builder.cast_impl = cast
    interpreter.interpreter_builder.options = dataclasses.replace(
        interpreter.interpreter_builder.options,
        allowed_dot_input_precisions=("ieee", *SPLITS),
    )


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Run the programs along the first axis of every grid in random order inside the block."""
    builder = interpreter.InterpreterBuilder
    released = builder.set_grid_idx
    order: dict[int, list[int]] = {}

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        programs = self.grid_dim[0]
        if programs not in order:
            order[programs] = random.Random(seed).sample(range(programs), programs)
        released(self, order[programs][x], y, z)

    builder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        builder.set_grid_idx = released


def _dot(self: Any, a: Any, b: Any, c: Any, precision: Any, _: Any) -> Any:
    x, y, total = _decoded(a), _decoded(b), c.data
    name = str(precision).split(".")[-1].lower()
    if a.dtype.scalar != tl.float32 or name not in SPLITS:
        total = _product(x.astype(total.dtype), y.astype(total.dtype), total)
        return interpreter.TensorHandle(total, c.dtype.scalar)
    dropped, terms = SPLITS[name]
    left, right = _split(x, dropped, terms), _split(y, dropped, terms)
    ranks = [(i, j) for i in range(terms) for j in range(terms) if i + j < terms]
    parts = np.zeros_like(total)
    for i, j in sorted(ranks, key=lambda pair: -sum(pair)):
        parts = _product(left[i], right[j], parts)
    # Added as float32 is, outside the tensor cores: the sum so far loses nothing to their rounding.
    return interpreter.TensorHandle(total + parts, c.dtype.scalar)


def _product(x: Any, y: Any, total: Any) -> Any:
    """What one instruction after the other adds up; tests put a GPU's rounding in its place."""
    return np.matmul(x, y) + total


def _decoded(handle: Any) -> Any:
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


def _split(x: Any, dropped: int, terms: int) -> list[Any]:
    parts = []
    for _ in range(terms):
        parts.append(_rounded(x, dropped))
        x = x - parts[-1]
    return parts


def _rounded(x: Any, dropped: int) -> Any:
    """Round float32 to the nearest number with ``dropped`` mantissa bits less."""
    half, mask = np.uint32(1 << (dropped - 1)), np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return ((np.ascontiguousarray(x, np.float32).view(np.uint32) + half) & mask).view(np.float32)


def _to_bfloat16(x: Any) -> Any:
    """Bit patterns of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)
