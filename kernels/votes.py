"""Counts of votes, scores above thresholds and histograms, in one pass over the values.

A program takes BS values. Where they all belong to one input, as usual, it adds them up and writes
one sum a column; else every value counts for itself. Counts are whole numbers, so the order of the
atomic additions does not matter. Bytes moved: the values, once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradood.errors import InputError
from gradood.kernels.launch import settings

MODES = ("argmax", "above", "histogram")


@triton.jit
def add(counts, row, hits, columns, inside, width):
    """Add ``hits`` ``[BS, BK]``, which are 0 or 1, to the columns of each value's row."""
    first = tl.max(tl.where(inside, row, -1), axis=0)
    alone = tl.min(tl.where(inside, row, first), axis=0) == first
    seen = columns < width
    if alone:
        total = tl.sum(hits.to(tl.int64), axis=0)
        tl.atomic_add(counts + first * width + columns, total, mask=seen & (total > 0),
                      sem="relaxed")  # fmt: skip
    else:
        place = counts + (row * width)[:, None] + columns[None, :]
        mask = (hits > 0) & inside[:, None] & seen[None, :]
        tl.atomic_add(place, hits.to(tl.int64), mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["M"])
def _argmax_kernel(
    values,  # [M, C]
    rows,  # [M]
    counts,  # [inputs, C + 1]
    M,
    C,
    v_m,
    v_c,
    BS: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS)
    inside = m < M
    row = tl.load(rows + m, mask=inside, other=0)
    best = tl.full((BS,), float("-inf"), tl.float32)
    winner = tl.zeros((BS,), tl.int32)
    bad = tl.zeros((BS,), tl.int32)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        mask = inside[:, None] & (c < C)[None, :]
        value = tl.load(values + (m * v_m)[:, None] + (c * v_c)[None, :], mask=mask,
                        other=float("-inf")).to(tl.float32)  # fmt: skip
        bad += tl.sum((value != value).to(tl.int32), axis=1)
        value = tl.where(value != value, float("-inf"), value)
        largest, place = tl.max(
            value, axis=1, return_indices=True, return_indices_tie_break_left=True
        )
        better = largest > best
        winner = tl.where(better, start + place, winner)
        best = tl.where(better, largest, best)
    winner = tl.where(bad > 0, C, winner)
    for start in range(0, C + 1, BK):
        column = start + tl.arange(0, BK)
        hits = ((winner[:, None] == column[None, :]) & inside[:, None]).to(tl.int32)
        add(counts, row, hits, column, inside, C + 1)


@triton.jit(do_not_specialize=["M", "K"])
def _threshold_kernel(
    values,  # [M]
    rows,  # [M]
    thresholds,  # [K]
    counts,  # [inputs, K + 1] or [inputs, K + 2]
    M,
    K,
    v_m,
    BS: tl.constexpr,
    BK: tl.constexpr,
    HISTOGRAM: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS)
    inside = m < M
    row = tl.load(rows + m, mask=inside, other=0)
    value = tl.load(values + m * v_m, mask=inside, other=0.0)
    bad = (value != value) & inside
    valid = inside & (value == value)
    width = K + 2 if HISTOGRAM else K + 1
    bucket = tl.zeros((BS,), tl.int32)
    if HISTOGRAM:
        for start in range(0, K, BK):
            k = start + tl.arange(0, BK)
            edge = tl.load(thresholds + k, mask=k < K, other=float("inf"))
            bucket += tl.sum((value[:, None] > edge[None, :]).to(tl.int32), axis=1)
    for start in range(0, width, BK):
        column = start + tl.arange(0, BK)
        if HISTOGRAM:
            hit = bucket[:, None] == column[None, :]
        else:
            edge = tl.load(thresholds + column, mask=column < K, other=float("inf"))
            hit = value[:, None] > edge[None, :]
        last = bad[:, None] & (column == width - 1)[None, :]
        hits = ((hit & valid[:, None]) | last).to(tl.int32)
        add(counts, row, hits, column, inside, width)


def vote_count(
    values: Tensor, rows: Tensor, mode: str, thresholds: Tensor | None, inputs: int
) -> Tensor:
    """Counts ``[inputs, columns]`` int64; what a column counts depends on the mode."""
    if mode not in MODES:
        raise InputError(f"mode {mode!r} is not known; use one of {', '.join(MODES)}")
    if (thresholds is None) != (mode == "argmax"):
        raise InputError(f"mode {mode!r} {'needs' if thresholds is None else 'has no'} thresholds")
    extra = 2 if mode == "histogram" else 1
    size = values.shape[1] if thresholds is None else thresholds.shape[0]
    counts = torch.zeros(inputs, size + extra, dtype=torch.int64, device=values.device)
    total = values.shape[0]
    if total == 0:
        return counts
    chosen = settings("votes" if thresholds is None else "thresholds", torch.float32)
    options = {"BS": chosen.tokens, "BK": min(chosen.outputs, triton.next_power_of_2(size + extra))}
    grid = (triton.cdiv(total, chosen.tokens),)
    if thresholds is None:
        block_c = min(chosen.inputs, triton.next_power_of_2(size))
        _argmax_kernel[grid](
            values, rows, counts, total, size, *values.stride(),
            BC=block_c, **options, **chosen.options,
        )  # fmt: skip
    else:
        _threshold_kernel[grid](
            values, rows, thresholds, counts, total, size, *values.stride(),
            HISTOGRAM=mode == "histogram", **options, **chosen.options,
        )  # fmt: skip
    return counts
