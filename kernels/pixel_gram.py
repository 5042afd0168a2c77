"""``Σ_{t,s} (d_t · d_s) Σ_k X[t + k, s + k]``: a convolution's norm from inner products of pixels.

``X = x xᵀ`` holds the inner products of all pixels of x, ``[S, S]`` in float32 with rows padded to
16; shifted by every tap k of the kernel and added up it is the Gram matrix of the image's patches,
which never exist. For ``x`` ``[N, H, W, C]`` and ``d`` ``[N, OH, OW, P]``, any strides, one group:
``N (S² C + T² P) / 2`` multiply-adds and ``N T² k / 2`` loads from L2. Worth it for small images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradood.kernels import reduction
from gradood.kernels.conv import pixel
from gradood.kernels.gram import inner_products, triangle
from gradood.kernels.launch import product_precision, settings
from gradood.kernels.layout import Geometry
from gradood.kernels.prepared import Arrange, Launch, arranged, prepared

#: Pixels beyond which the matrix X is not worth its memory: 256 KiB a sample.
MOST_PIXELS = 256


@triton.jit(do_not_specialize=["S", "blocks"])
def _pixel_gram_kernel(
    x,  # [N, S, C]
    gram,  # [N, S, width]
    S,
    C,
    blocks,
    width,
    x_n,
    x_c,
    x_s,
    BT: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    program = tl.program_id(0)
    pairs = blocks * (blocks + 1) // 2
    sample = (program // pairs).to(tl.int64)
    i, j = triangle(program % pairs, blocks)
    t = i * BT + tl.arange(0, BT)
    s = j * BT + tl.arange(0, BT)
    x += sample * x_n
    tile = tl.zeros((BT, BT), tl.float32)
    tile = inner_products(x + t * x_s, x + s * x_s, t < S, s < S, C, x_c, tile, BK, PRECISION)
    inside = (t < S)[:, None] & (s < S)[None, :]
    gram += sample * S * width
    tl.store(gram + (t * width)[:, None] + s[None, :], tile, mask=inside)
    if i != j:
        tl.store(gram + t[:, None] + (s * width)[None, :], tile, mask=inside)


@triton.jit(do_not_specialize=["S", "T", "H", "W", "OH", "OW", "blocks"])
def _shifted_gram_kernel(
    gram,  # [N, S, width]
    d,  # [N, T, P]
    partial,  # [N, pairs (+ pairs)]
    S,
    T,
    H,
    W,
    OH,
    OW,
    P,
    blocks,
    width,
    d_n,
    d_p,
    d_t,
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
    BT: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    BIAS: tl.constexpr,
):
    program = tl.program_id(0)
    pairs = blocks * (blocks + 1) // 2
    sample = (program // pairs).to(tl.int64)
    pair = program % pairs
    i, j = triangle(pair, blocks)
    t = i * BT + tl.arange(0, BT)
    s = j * BT + tl.arange(0, BT)
    d += sample * d_n
    of_d = tl.zeros((BT, BT), tl.float32)
    of_d = inner_products(d + t * d_t, d + s * d_t, t < T, s < T, P, d_p, of_d, BK, PRECISION)
    gram += sample * S * width
    of_x = tl.zeros((BT, BT), tl.float32)
    for tap in range(KH * KW):
        row, row_seen = pixel(
            t, 0, tap // KW, tap % KW, 1, H, W, OH, OW, SD, SH, SW, PD, PH, PW, DD, DH, DW, False
        )
        column, column_seen = pixel(
            s, 0, tap // KW, tap % KW, 1, H, W, OH, OW, SD, SH, SW, PD, PH, PW, DD, DH, DW, False
        )
        seen = (row_seen & (t < T))[:, None] & (column_seen & (s < T))[None, :]
        of_x += tl.load(gram + (row * width)[:, None] + column[None, :], mask=seen, other=0.0)
    twice = tl.where(i == j, 1.0, 2.0)
    out = partial + sample * (2 * pairs if BIAS else pairs)
    tl.store(out + pair, twice * tl.sum(of_x * of_d))
    if BIAS:
        tl.store(out + pairs + pair, twice * tl.sum(of_d))


class ShiftGram(NamedTuple):
    """A launch for inner products of pixels, their shape, and one that sums them shifted."""

    of_pixels: Launch
    shape: tuple[int, ...]
    shifted: reduction.Summed
    arrange: Arrange | None

    def both(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """The norms of weight and bias; the second is empty without."""
        if self.arrange is not None:
            x, d = self.arrange(x, d)
        gram = torch.empty(self.shape, dtype=torch.float32, device=x.device)
        self.of_pixels(x, gram)
        return self.shifted.both(gram, d)


@prepared
def prepare(x: Tensor, d: Tensor, geometry: Geometry, bias: bool) -> ShiftGram:
    """Both norms from inner products of pixels, for ``x`` ``[N, C, H, W]``, ``d`` ``[N, P, …]``."""
    (samples, channels, *sizes), outputs, out = x.shape, d.shape[1], d.shape[2:]
    size_of = [(*[1] * (2 - len(s)), *s) for s in (sizes, out)]
    x, d, arrange = arranged(_flat, x, d)
    pixels, tokens = x.shape[2], d.shape[2]
    products = (pixels**2 * channels + tokens**2 * outputs) // 2
    how = product_precision(x.dtype, products, cancels=True)
    chosen = settings("gram", x.dtype, 64)
    constants = {"BK": chosen.inputs, "PRECISION": how, **chosen.options}
    stride = triton.cdiv(pixels, 16) * 16
    block, blocks, pairs = _tiles(pixels, chosen.tokens)
    numbers = (pixels, channels, blocks, stride, *x.stride())
    launch = Launch(_pixel_gram_kernel, samples * pairs, numbers, {"BT": block, **constants})
    block, blocks, pairs = _tiles(tokens, chosen.tokens)
    shifted = Launch(
        _shifted_gram_kernel,
        samples * pairs,
        (pixels, tokens, *size_of[0], *size_of[1], outputs, blocks, stride, *d.stride()),
        {**geometry.constants, "BT": block, "BIAS": bias, **constants},
    )
    sums = reduction.weights_and_biases(pairs, pairs if bias else 0)
    return ShiftGram(launch, (samples, pixels, stride), reduction.Summed(shifted, *sums), arrange)


def _flat(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    return x.flatten(2), d.flatten(2)


def _tiles(tokens: int, largest: int) -> tuple[int, int, int]:
    """Size of a tile, tiles along an axis, and tiles on and below the diagonal."""
    block = min(largest, max(16, triton.next_power_of_2(tokens)))
    blocks = triton.cdiv(tokens, block)
    return block, blocks, blocks * (blocks + 1) // 2
