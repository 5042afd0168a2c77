"""``‖∂J/∂W‖²`` of a depthwise convolution: no inner product over channels, so no tensor cores.

``G[p, k] = Σ_o d[o, p] x[o · stride − padding + k · dilation, c(p)]`` for ``x`` ``[N, D, H, W, C]``
and ``d`` ``[N, OD, OH, OW, M C]``, both contiguous; both norms are ``[N]`` float32. A program holds
one row of taps for BC channels, ``N T M C k`` multiply-adds in all; x and d are read once a row of
the kernel, from L2 after the first: bound by memory.
"""

from __future__ import annotations

from math import prod

import triton
import triton.language as tl
from torch import Tensor

from gradood.kernels import reduction
from gradood.kernels.conv import pixel
from gradood.kernels.launch import settings
from gradood.kernels.layout import Geometry, both_innermost
from gradood.kernels.prepared import Launch, arranged, prepared


@triton.jit(do_not_specialize=["T", "D", "H", "W", "OH", "OW", "blocks"])
def _depthwise_kernel(
    x,  # [N, D, H, W, C]
    d,  # [N, T, C * MULTIPLIER]
    partial,  # [N, tiles (+ blocks * MULTIPLIER)]
    T,
    D,
    H,
    W,
    OH,
    OW,
    C,
    blocks,
    MULTIPLIER: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SD: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DD: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    DEEP: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BC: tl.constexpr,
    BIAS: tl.constexpr,
):
    program = tl.program_id(0)
    columns = blocks * MULTIPLIER
    tiles = columns * (KD * KH)
    sample = (program // tiles).to(tl.int64)
    tile = program % tiles
    tap_row = tile // columns
    copy = tile % MULTIPLIER
    c = tile % columns // MULTIPLIER * BC + tl.arange(0, BC)
    tap = tl.arange(0, BK)
    x += sample * D * H * W * C
    d += sample * T * C * MULTIPLIER
    gradient = tl.zeros((BT, BK, BC), tl.float32)
    total = tl.zeros((BT, BC), tl.float32)
    for start in range(0, T, BT):
        t = start + tl.arange(0, BT)
        inside = (t < T)[:, None] & (c < C)[None, :]
        d_block = tl.load(
            d + (t * C)[:, None] * MULTIPLIER + (c * MULTIPLIER + copy)[None, :],
            mask=inside,
            other=0.0,
        ).to(tl.float32)
        place, seen = pixel(
            t[:, None], tap_row // KH, tap_row % KH, tap[None, :], D, H, W, OH, OW,
            SD, SH, SW, PD, PH, PW, DD, DH, DW, DEEP,
        )  # fmt: skip
        seen = seen & (t < T)[:, None] & (tap < KW)[None, :]
        x_block = tl.load(
            x + (place * C)[:, :, None] + c[None, None, :],
            mask=seen[:, :, None] & (c < C)[None, None, :],
            other=0.0,
        ).to(tl.float32)
        gradient += x_block * d_block[:, None, :]
        if BIAS:
            total += d_block
    row = partial + sample * (tiles + (columns if BIAS else 0))
    taps = tl.sum(gradient, axis=0)
    tl.store(row + tile, tl.sum(taps * taps))
    if BIAS:
        if tap_row == 0:
            bias = tl.sum(total, axis=0)
            tl.store(row + tiles + tile, tl.sum(bias * bias, axis=0))


@prepared
def prepare(x: Tensor, d: Tensor, geometry: Geometry, bias: bool) -> reduction.Summed:
    """Both norms for ``x`` ``[N, C, *S]`` and ``d`` ``[N, M C, *T]``, one group a channel of x."""
    x, d, arrange = arranged(both_innermost, x, d)
    samples, channels, multiplier = x.shape[0], x.shape[-1], d.shape[-1] // x.shape[-1]
    chosen = settings("depthwise", x.dtype)
    room = triton.next_power_of_2(geometry.kernel[2])
    block = min(chosen.inputs, triton.next_power_of_2(channels))
    blocks = triton.cdiv(channels, block)
    tiles = blocks * multiplier * geometry.kernel[0] * geometry.kernel[1]
    constants = {
        "MULTIPLIER": multiplier,
        **geometry.constants,
        "DEEP": d.shape[1] > 1 or geometry.kernel[0] > 1 or geometry.padding[0] > 0,
        "BT": max(1, chosen.tokens // room),
        "BK": room,
        "BC": block,
        "BIAS": bias,
        **chosen.options,
    }
    numbers = (prod(d.shape[1:4]), *x.shape[1:4], *d.shape[2:4], channels, blocks)
    launch = Launch(_depthwise_kernel, samples * tiles, numbers, constants)
    sums = reduction.weights_and_biases(tiles, blocks * multiplier if bias else 0)
    return reduction.Summed(launch, *sums, arrange)
