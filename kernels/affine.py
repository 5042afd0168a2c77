"""``Σ_c (Σ_t d x̂)²`` and ``Σ_c (Σ_t d)²``: weight and bias of a normalisation layer, fused.

``x`` and ``d`` are ``[N, T, C]`` with any strides, ``x̂ = (x − mean) · rstd`` with statistics per
channel (batch norm), per token (layer and RMS norm) or per sample and group of channels (group and
instance norm); the mean is subtracted first, or the sum would cancel. Without x only the second
norm is computed, which is any layer's bias. ``2 N T C`` loads, two multiply-adds each: bound by
memory. Where the statistics are constants, the same pass makes the gradient that flows on,
``scale_c d``. Statistics of the input itself are a pass of their own over x; for tokens see also
``token_norm``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradood.kernels import reduction
from gradood.kernels.launch import settings
from gradood.kernels.prepared import Launch, prepared

PER_CHANNEL, PER_TOKEN, PER_GROUP = 0, 1, 2


class Statistics(NamedTuple):
    """Mean (None for RMS norm) and reciprocal standard deviation, float32 and contiguous."""

    mean: Tensor | None
    rstd: Tensor
    kind: int
    #: Groups of channels a sample.
    groups: int = 1

    @classmethod
    def per_channel(cls, mean: Tensor, rstd: Tensor) -> Statistics:
        """Those that a batch norm layer keeps."""
        return cls(mean.float().contiguous(), rstd.float().contiguous(), PER_CHANNEL)


#: Tokens a program at most; by the sample alone, so that results do not depend on the batch.
_TOKENS = 1024


@triton.jit(do_not_specialize=["blocks", "tokens", "splits"])
def _affine_kernel(
    x,  # [N, T, C]
    d,  # [N, T, C]
    mean,  # [C], [N, T] or [N, groups]
    rstd,
    scale,  # [C]
    gradient,  # [N, T, C]
    partial,  # [N, 1 or 2 for weight and bias, blocks], or [N, 1 or 2, splits, C] before squaring
    T,
    C,
    tokens,
    blocks,
    splits,
    groups,
    x_n,
    x_t,
    x_c,
    d_n,
    d_t,
    d_c,
    g_n,
    g_t,
    g_c,
    WEIGHT: tl.constexpr,
    CENTRED: tl.constexpr,
    GRADIENT: tl.constexpr,
    SPLIT: tl.constexpr,
    KIND: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    program = tl.program_id(0)
    parts = blocks * splits
    sample = (program // parts).to(tl.int64)
    block = program % blocks
    split = program % parts // blocks
    c = block * BC + tl.arange(0, BC)
    c_inside = c < C
    weight = tl.zeros((BT, BC), tl.float32)
    bias = tl.zeros((BT, BC), tl.float32)
    x += sample * x_n
    d += sample * d_n
    if WEIGHT and KIND != 1:
        place = c.to(tl.int64)
        if KIND == 2:
            place = sample * groups + c // (C // groups)
        deviation = tl.load(rstd + place, mask=c_inside, other=0.0)[None, :]
        if CENTRED:
            centre = tl.load(mean + place, mask=c_inside, other=0.0)[None, :]
    if GRADIENT:
        gradient += sample * g_n
        scales = tl.load(scale + c, mask=c_inside, other=0.0)[None, :]
    for start in range(0, tokens, BT):
        place_t = start + tl.arange(0, BT)
        t = split * tokens + place_t
        t_inside = (place_t < tokens) & (t < T)
        inside = t_inside[:, None] & c_inside[None, :]
        d_tile = tl.load(d + (t * d_t)[:, None] + (c * d_c)[None, :], mask=inside, other=0.0)
        d_tile = d_tile.to(tl.float32)
        bias += d_tile
        if GRADIENT:
            flows = (d_tile * scales).to(gradient.dtype.element_ty)
            tl.store(gradient + (t * g_t)[:, None] + (c * g_c)[None, :], flows, mask=inside)
        if WEIGHT:
            x_tile = tl.load(x + (t * x_t)[:, None] + (c * x_c)[None, :], mask=inside, other=0.0)
            x_tile = x_tile.to(tl.float32)
            if KIND == 1:
                deviation = tl.load(rstd + sample * T + t, mask=t_inside, other=0.0)[:, None]
                if CENTRED:
                    centre = tl.load(mean + sample * T + t, mask=t_inside, other=0.0)[:, None]
            if CENTRED:
                x_tile -= centre
            weight += d_tile * (x_tile * deviation)
    numbers = splits * C if SPLIT else blocks
    row = partial + sample * (2 * numbers if WEIGHT else numbers)
    if SPLIT:
        row += split * C + c
        tl.store(row + (numbers if WEIGHT else 0), tl.sum(bias, axis=0), mask=c_inside)
        if WEIGHT:
            tl.store(row, tl.sum(weight, axis=0), mask=c_inside)
    else:
        by_channel = tl.sum(bias, axis=0)
        squared = tl.sum(by_channel * by_channel, axis=0)
        tl.store(row + (blocks if WEIGHT else 0) + block, squared)
        if WEIGHT:
            by_channel = tl.sum(weight, axis=0)
            tl.store(row + block, tl.sum(by_channel * by_channel, axis=0))


@triton.jit(do_not_specialize=["rows", "per_sample"])
def _statistics_kernel(
    x,  # [rows, A, B], rows being samples times groups or tokens
    mean,  # [rows]
    rstd,
    rows,
    per_sample,
    A,
    B,
    x_n,
    x_r,
    x_a,
    x_b,
    eps,
    CENTRED: tl.constexpr,
    BR: tl.constexpr,
    BE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    inside = row < rows
    start_of = x + (row // per_sample * x_n + row % per_sample * x_r)[:, None]
    size = A * B
    count = size * 1.0  # as in token_norm
    centre = tl.zeros((BR,), tl.float32)
    if CENTRED:
        total = tl.zeros((BR, BE), tl.float32)
        for start in range(0, size, BE):
            e = start + tl.arange(0, BE)
            place = (e // B * x_a + e % B * x_b)[None, :]
            mask = inside[:, None] & (e < size)[None, :]
            total += tl.load(start_of + place, mask=mask, other=0.0).to(tl.float32)
        centre = tl.sum(total, axis=1) / count
    squares = tl.zeros((BR, BE), tl.float32)
    for start in range(0, size, BE):
        e = start + tl.arange(0, BE)
        place = (e // B * x_a + e % B * x_b)[None, :]
        mask = inside[:, None] & (e < size)[None, :]
        value = tl.load(start_of + place, mask=mask, other=0.0).to(tl.float32) - centre[:, None]
        squares += tl.where(mask, value * value, 0.0)
    variance = tl.sum(squares, axis=1) / count
    if CENTRED:
        tl.store(mean + row, centre, mask=inside)
    tl.store(rstd + row, 1.0 / tl.sqrt(variance + eps), mask=inside)


def affine_sqnorm(
    x: Tensor, d: Tensor, statistics: Statistics, scale: Tensor | None = None,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Both norms of a normalisation layer, for ``x`` and ``d`` ``[N, T, C]``.

    With ``scale`` ``[C]`` also ``scale d``, into ``gradient``.
    """
    mean, rstd, kind, groups = statistics
    lies = None if gradient is None else gradient.stride()
    known = _affine(x, d, kind, groups, mean is not None, lies)
    flows, scale = d if gradient is None else gradient, rstd if scale is None else scale
    weight, bias = known(x, d, rstd if mean is None else mean, rstd, scale, flows)
    return weight, bias


def bias_sqnorm(d: Tensor) -> Tensor:
    """``‖Σ_t d_t‖²`` for ``d`` ``[N, T, C]``."""
    return _affine(d, d, None, 1, False, None)(d, d, d, d, d, d)[0]


@prepared
def _affine(
    x: Tensor, d: Tensor, kind: int | None, groups: int, centred: bool,
    gradient: tuple[int, ...] | None,
) -> reduction.Summed:  # fmt: skip
    """For statistics of a kind, or for the norm of a bias alone; how the gradient lies, if any."""
    samples, tokens, channels = d.shape
    block_t, block_c, warps = _blocks(d)
    blocks, splits = triton.cdiv(channels, block_c), triton.cdiv(tokens, _TOKENS)
    norms = 1 if kind is None else 2
    numbers = blocks if splits == 1 else splits * channels
    sizes = (tokens, channels, triton.cdiv(tokens, splits), blocks, splits, groups)
    constants = {
        "WEIGHT": kind is not None,
        "CENTRED": centred,
        "GRADIENT": gradient is not None,
        "SPLIT": splits > 1,
        "KIND": PER_CHANNEL if kind is None else kind,
        "BT": block_t,
        "BC": block_c,
        "num_warps": warps,
    }
    strides = (*x.stride(), *d.stride(), *(gradient or d.stride()))
    launch = Launch(_affine_kernel, samples * blocks * splits, (*sizes, *strides), constants)
    of = (numbers, 1, False) if splits == 1 else (channels, splits, True)
    segments = tuple(reduction.Segment(i * numbers, *of) for i in range(norms))
    return reduction.Summed(launch, norms * numbers, segments)


def statistics_of(x: Tensor, groups: int | None, eps: float, rms: bool) -> Statistics:
    """Statistics of ``x`` ``[N, T, C]``: per token, or per group of channels if ``groups``."""
    samples, tokens, channels = x.shape
    n, t, c = x.stride()
    if groups is None:
        per_sample, shape, strides = tokens, (1, channels), (t, 0, c)
    else:
        width = channels // groups
        per_sample, shape, strides = groups, (width, tokens), (width * c, c, t)
        if c < t:  # the innermost dimension last
            shape, strides = (tokens, width), (width * c, t, c)
    rows, size = samples * per_sample, shape[0] * shape[1]
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    mean = None if rms else torch.empty_like(rstd)
    chosen = settings("statistics", x.dtype)
    block = min(chosen.inputs, max(16, triton.next_power_of_2(size)))
    together = max(1, chosen.inputs // block)
    _statistics_kernel[(triton.cdiv(rows, together),)](
        x,
        rstd if mean is None else mean,
        rstd,
        rows,
        per_sample,
        *shape,
        n,
        *strides,
        eps,
        CENTRED=not rms,
        BR=together,
        BE=block,
        **chosen.options,
    )
    return Statistics(mean, rstd, PER_TOKEN if groups is None else PER_GROUP, groups or 1)


def _blocks(d: Tensor) -> tuple[int, int, int]:
    """Tokens and channels a tile, and warps: long along the dimension that is innermost."""
    chosen = settings("affine", d.dtype)
    _, tokens, channels = d.shape
    if d.stride(1) < d.stride(2):  # planes of a channel
        block_t = min(chosen.tokens, triton.next_power_of_2(tokens))
        area = chosen.tokens * 4
        return block_t, max(1, min(triton.next_power_of_2(channels), area // block_t)), chosen.warps
    block_c = min(chosen.inputs, triton.next_power_of_2(channels))
    area = chosen.tokens * 4
    return max(1, min(triton.next_power_of_2(tokens), area // block_c)), block_c, chosen.warps
