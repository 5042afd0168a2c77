"""``‖∂J/∂W‖²`` of a 3 × 3 convolution with stride one: nine taps from six loads.

As in ``conv``, ``G[p, c, i, j] = Σ_{h,w} d[h, w, p] x[h − PH + i DH, w − PW + j DW, c]``. With row
``r = h + i DH`` in h's place, i moves d alone and j moves x alone: three loads of either serve all
nine products, which stay in registers. A tile reads ``3 (BP + BQ)`` numbers a pixel where nine
tiles of ``conv`` read ``9 (BP + BQ)``, over ``2 DH`` rows more. Half precision.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gradood.kernels import reduction
from gradood.kernels.launch import fit, settings
from gradood.kernels.layout import Geometry, both_innermost
from gradood.kernels.prepared import Launch, arranged, prepared


@triton.jit
def _moved_d(d, t, T, P, p_inside):
    """Load d ``[BP, BT]`` of pixels ``t``, nothing before the first row and after the last."""
    inside = p_inside[:, None] & ((t >= 0) & (t < T))[None, :]
    return tl.load(d + (t * P)[None, :], mask=inside, other=0.0)


@triton.jit
def _moved_x(x, row, w, columns, H, W, C, q_inside, t_inside):
    """Load x ``[BT, BQ]`` of pixels ``(row, w + columns)``."""
    column = w + columns
    seen = t_inside & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    inside = seen[:, None] & q_inside[None, :]
    return tl.load(x + ((row * W + column) * C)[:, None], mask=inside, other=0.0)


@triton.jit
def _square(g):
    return tl.sum(g * g)


@triton.jit(do_not_specialize=["H", "W", "OH", "OW", "tiles_p", "tiles_q"])
def _conv3x3_kernel(
    x,  # [N, H, W, C]
    d,  # [N, OH OW, P]
    partial,  # [N, tiles (+ groups * tiles_p)]
    H,
    W,
    OH,
    OW,
    C,
    P,
    group_inputs,
    group_outputs,
    tiles_p,
    tiles_q,
    GROUPS: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
    BQ: tl.constexpr,
    BIAS: tl.constexpr,
):
    program = tl.program_id(0)
    tiles = GROUPS * tiles_p * tiles_q
    sample = (program // tiles).to(tl.int64)
    tile = program % tiles
    tile_q = tile % tiles_q
    group_p = tile // tiles_q
    group = group_p // tiles_p
    p = group_p % tiles_p * BP + tl.arange(0, BP)
    q = tile_q * BQ + tl.arange(0, BQ)
    p_inside, q_inside = p < group_outputs, q < group_inputs
    T = OH * OW
    d += sample * T * P + (group * group_outputs + p)[:, None]
    x += sample * H * W * C + (group * group_inputs + q)[None, :]
    g00 = tl.zeros((BP, BQ), tl.float32)
    g01 = tl.zeros((BP, BQ), tl.float32)
    g02 = tl.zeros((BP, BQ), tl.float32)
    g10 = tl.zeros((BP, BQ), tl.float32)
    g11 = tl.zeros((BP, BQ), tl.float32)
    g12 = tl.zeros((BP, BQ), tl.float32)
    g20 = tl.zeros((BP, BQ), tl.float32)
    g21 = tl.zeros((BP, BQ), tl.float32)
    g22 = tl.zeros((BP, BQ), tl.float32)
    total = tl.zeros((BP,), tl.float32)
    pixels = T + 2 * DH * OW
    for start in range(0, pixels, BT):
        t = start + tl.arange(0, BT)
        t_inside = t < pixels
        r, w = t // OW, t % OW
        d0 = _moved_d(d, t, T, P, p_inside)
        d1 = _moved_d(d, t - DH * OW, T, P, p_inside)
        d2 = _moved_d(d, t - 2 * DH * OW, T, P, p_inside)
        x0 = _moved_x(x, r - PH, w, -PW, H, W, C, q_inside, t_inside)
        x1 = _moved_x(x, r - PH, w, DW - PW, H, W, C, q_inside, t_inside)
        x2 = _moved_x(x, r - PH, w, 2 * DW - PW, H, W, C, q_inside, t_inside)
        g00 = tl.dot(d0, x0, g00, input_precision="ieee")
        g01 = tl.dot(d0, x1, g01, input_precision="ieee")
        g02 = tl.dot(d0, x2, g02, input_precision="ieee")
        g10 = tl.dot(d1, x0, g10, input_precision="ieee")
        g11 = tl.dot(d1, x1, g11, input_precision="ieee")
        g12 = tl.dot(d1, x2, g12, input_precision="ieee")
        g20 = tl.dot(d2, x0, g20, input_precision="ieee")
        g21 = tl.dot(d2, x1, g21, input_precision="ieee")
        g22 = tl.dot(d2, x2, g22, input_precision="ieee")
        if BIAS:
            total += tl.sum(d0.to(tl.float32), axis=1)
    row = partial + sample * (tiles + (GROUPS * tiles_p if BIAS else 0))
    first = _square(g00) + _square(g01) + _square(g02)
    second = _square(g10) + _square(g11) + _square(g12)
    third = _square(g20) + _square(g21) + _square(g22)
    tl.store(row + tile, first + second + third)
    if BIAS:
        if tile_q == 0:
            tl.store(row + tiles + group_p, reduction.vector_sqnorm(total))


@prepared
def prepare(x: Tensor, d: Tensor, geometry: Geometry, bias: bool) -> reduction.Summed:
    """Both norms, for ``x`` ``[N, C, H, W]`` and ``d`` ``[N, P, OH, OW]``."""
    x, d, arrange = arranged(both_innermost, x, d)
    groups = geometry.groups
    inputs, outputs = x.shape[-1] // groups, d.shape[-1] // groups
    chosen = settings("conv3x3", x.dtype, min(inputs, outputs))
    block_p, block_q = fit(chosen.outputs, outputs), fit(chosen.inputs, inputs)
    tiles_p, tiles_q = triton.cdiv(outputs, block_p), triton.cdiv(inputs, block_q)
    tiles = groups * tiles_p * tiles_q
    sizes = (*x.shape[2:4], *d.shape[2:4], x.shape[-1], d.shape[-1])
    constants = {
        "GROUPS": groups,
        "PH": geometry.padding[1],
        "PW": geometry.padding[2],
        "DH": geometry.dilation[1],
        "DW": geometry.dilation[2],
        "BT": chosen.tokens,
        "BP": block_p,
        "BQ": block_q,
        "BIAS": bias,
        **chosen.options,
    }
    numbers = (*sizes, inputs, outputs, tiles_p, tiles_q)
    launch = Launch(_conv3x3_kernel, x.shape[0] * tiles, numbers, constants)
    sums = reduction.weights_and_biases(tiles, groups * tiles_p if bias else 0)
    return reduction.Summed(launch, *sums, arrange)


def serves(x: Tensor, d: Tensor, geometry: Geometry) -> bool:
    """Whether it is such a convolution, of channels enough for a tile, in half precision."""
    small = x.element_size() == 2 and x.dim() == 4 and x.shape[1] // geometry.groups >= 16
    return small and geometry.kernel == (1, 3, 3) and geometry.stride == (1, 1, 1)
