"""``‖∂J/∂W‖²`` of a convolution, formed in registers: im2col happens in the addresses.

``G[p, c, k] = Σ_o d[o, p] x[o · stride − padding + k · dilation, c]`` for ``x`` ``[N, D, H, W, C]``
contiguous, and ``d`` ``[N, T, P]``; both norms are ``[N]`` float32. ``N T P Q``
multiply-adds with T output pixels and ``Q = C k / g``. A tile covers BP output channels and BQ
channels of one tap, so that one address a pixel suffices; with fewer than 16 channels a group
(stems) it covers BQ columns of all taps instead, ordered so that neighbours stay neighbours.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gradood.kernels import reduction
from gradood.kernels.launch import fit, product_precision, settings
from gradood.kernels.layout import Geometry, channels_innermost
from gradood.kernels.prepared import Launch, arranged, prepared


@triton.jit
def pixel(t, tap_d, tap_h, tap_w, D, H, W, OH, OW, SD: tl.constexpr, SH: tl.constexpr,
          SW: tl.constexpr, PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
          DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, DEEP: tl.constexpr):  # fmt: skip
    """Number of the input pixel that output pixel ``t`` sees through a tap; is it in the image?"""
    w = t % OW * SW - PW + tap_w * DW
    if DEEP:
        h = t // OW % OH * SH - PH + tap_h * DH
        depth = t // (OW * OH) * SD - PD + tap_d * DD
        inside = (depth >= 0) & (depth < D) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        return (depth * H + h) * W + w, inside
    h = t // OW * SH - PH + tap_h * DH
    return h * W + w, (h >= 0) & (h < H) & (w >= 0) & (w < W)


@triton.jit(do_not_specialize=["D", "H", "W", "OH", "OW", "tiles_p", "tiles_q"])
def _conv_kernel(
    x,  # [N, D, H, W, C]
    d,  # [N, T, P]
    partial,  # [N, tiles (+ groups * tiles_p)]
    T,
    D,
    H,
    W,
    OH,
    OW,
    C,
    group_inputs,
    group_outputs,
    tiles_p,
    tiles_q,
    d_n,
    d_p,
    d_t,
    GROUPS: tl.constexpr,
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
    FLAT: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
    BQ: tl.constexpr,
    PRECISION: tl.constexpr,
    BIAS: tl.constexpr,
):
    program = tl.program_id(0)
    tiles = GROUPS * tiles_p * tiles_q
    sample = (program // tiles).to(tl.int64)
    tile = program % tiles
    tile_q = tile % tiles_q
    group_p = tile // tiles_q  # which group, and which of its tiles of outputs
    p = group_p % tiles_p * BP + tl.arange(0, BP)
    group = group_p // tiles_p
    if FLAT:
        q = tile_q * BQ + tl.arange(0, BQ)
        q_inside = q < group_inputs * (KD * KH * KW)
        channel = q % group_inputs
        tap = q // group_inputs
        tap_d, tap_h, tap_w = tap // (KH * KW), tap // KW % KH, tap % KW
    else:
        blocks = tiles_q // (KD * KH * KW)
        tap = tile_q // blocks
        channel = tile_q % blocks * BQ + tl.arange(0, BQ)
        q_inside = channel < group_inputs
        tap_d, tap_h, tap_w = tap // (KH * KW), tap // KW % KH, tap % KW
    p_inside = p < group_outputs
    d_tile = d + sample * d_n + ((group * group_outputs + p) * d_p)[:, None]
    x_tile = x + sample * D * H * W * C + (group * group_inputs + channel)[None, :]
    gradient = tl.zeros((BP, BQ), tl.float32)
    total = tl.zeros((BP,), tl.float32)
    for start in range(0, T, BT):
        t = start + tl.arange(0, BT)
        t_inside = t < T
        d_block = tl.load(
            d_tile + (t * d_t)[None, :], mask=p_inside[:, None] & t_inside[None, :], other=0.0
        )
        if FLAT:
            place, seen = pixel(
                t[:, None], tap_d[None, :], tap_h[None, :], tap_w[None, :], D, H, W, OH, OW,
                SD, SH, SW, PD, PH, PW, DD, DH, DW, DEEP,
            )  # fmt: skip
            x_mask = seen & t_inside[:, None] & q_inside[None, :]
            x_block = tl.load(x_tile + place * C, mask=x_mask, other=0.0)
        else:
            place, seen = pixel(
                t, tap_d, tap_h, tap_w, D, H, W, OH, OW, SD, SH, SW, PD, PH, PW, DD, DH, DW, DEEP
            )
            x_mask = (seen & t_inside)[:, None] & q_inside[None, :]
            x_block = tl.load(x_tile + (place * C)[:, None], mask=x_mask, other=0.0)
        gradient = tl.dot(d_block, x_block, gradient, input_precision=PRECISION)
        if BIAS:
            total += tl.sum(d_block.to(tl.float32), axis=1)
    row = partial + sample * (tiles + (GROUPS * tiles_p if BIAS else 0))
    tl.store(row + tile, tl.sum(gradient * gradient))
    if BIAS:
        if tile_q == 0:
            tl.store(row + tiles + group_p, reduction.vector_sqnorm(total))


@prepared
def prepare(x: Tensor, d: Tensor, geometry: Geometry, bias: bool) -> reduction.Summed:
    """Both norms by forming the gradient, for ``x`` ``[N, C, *S]`` and ``d`` ``[N, P, *T]``."""
    depth, *size = (*[1] * (5 - d.dim()), *d.shape[2:])
    x, d, arrange = arranged(_arrange, x, d)
    groups, taps = geometry.groups, geometry.taps
    inputs, outputs, pixels = x.shape[-1] // groups, d.shape[1] // groups, d.shape[2]
    flat = inputs < 16
    columns = inputs * taps if flat else inputs
    chosen = settings("stem" if flat else "conv", x.dtype, min(columns, outputs))
    block_p, block_q = fit(chosen.outputs, outputs), fit(chosen.inputs, columns)
    tiles_p = triton.cdiv(outputs, block_p)
    tiles_q = triton.cdiv(columns, block_q) * (1 if flat else taps)
    tiles = groups * tiles_p * tiles_q
    sizes = (pixels, *x.shape[1:4], *size, x.shape[-1], inputs, outputs)
    constants = {
        "GROUPS": groups,
        **geometry.constants,
        "DEEP": depth > 1 or geometry.kernel[0] > 1 or geometry.padding[0] > 0,
        "FLAT": flat,
        "BT": chosen.tokens,
        "BP": block_p,
        "BQ": block_q,
        "PRECISION": product_precision(x.dtype, pixels * inputs * taps * outputs, cancels=False),
        "BIAS": bias,
        **chosen.options,
    }
    numbers = (*sizes, tiles_p, tiles_q, *d.stride())
    launch = Launch(_conv_kernel, x.shape[0] * tiles, numbers, constants)
    sums = reduction.weights_and_biases(tiles, groups * tiles_p if bias else 0)
    return reduction.Summed(launch, *sums, arrange)


def _arrange(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    return channels_innermost(x), _wide(d)


def _wide(d: Tensor) -> Tensor:
    """Pixels ``[N, P, T]`` that load as words of 128 bits: channels or long planes innermost."""
    flat = d.flatten(2)
    if flat.stride(2) == 1 and not any(n % 16 for n in (flat.shape[2], *flat.stride()[:2])):
        return flat
    return flat if flat.stride(1) == 1 else channels_innermost(flat)[:, 0, 0].transpose(1, 2)


def pointwise_tokens(x: Tensor, d: Tensor, stride: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Pixels of a convolution with a kernel of size one as tokens; views if may be.

    The layer is linear over pixels, and its kernels read any strides: d ``[N, T, P]``, and x
    ``[N, T, C]`` or, where a stride leaves pixels out, ``[N, rows, width, C]``.
    """
    for axis, (step, size) in enumerate(zip(stride, d.shape[2:], strict=True)):
        x = x.narrow(2 + axis, 0, (size - 1) * step + 1)
        x = x[(slice(None),) * (2 + axis) + (slice(None, None, step),)]
    x, d = x.movedim(1, -1), d.movedim(1, -1)
    for tokens in ((-1,), (-1, x.shape[-2])):
        try:
            return x.view(len(x), *tokens, x.shape[-1]), d.flatten(1, -2)
        except RuntimeError:  # no view: its pixels do not lie at even distances
            continue
    return x.flatten(1, -2), d.flatten(1, -2)
