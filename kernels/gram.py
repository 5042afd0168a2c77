"""``Σ_{t,s} (x_t · x_s)(d_t · d_s)``: the same norm from inner products of tokens.

``x`` is ``[N, T, Q]`` and ``d`` ``[N, T, P]``, any strides; both norms are ``[N]`` float32. Tiles
of ``T × T`` with ``t ≥ s`` suffice, so ``N T² (P + Q) / 2`` multiply-adds; the tile of d alone also
holds the bias norm, ``Σ_{t,s} d_t · d_s``. Where T is at most half a tile, several samples share
one, and only its blocks along the diagonal are used. For an embedding, ``x_t · x_s`` becomes
``[index_t = index_s]``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gradood.kernels import reduction
from gradood.kernels.launch import product_precision, settings
from gradood.kernels.layout import Rows, token
from gradood.kernels.prepared import Launch, prepared


@triton.jit
def triangle(index, blocks):
    """Map ``0 ≤ index < blocks (blocks + 1) / 2`` to tiles ``(i, j)`` with ``i ≥ j``.

    The triangle is folded into a rectangle, so that whole numbers do.
    """
    even = 1 - blocks % 2
    width = (blocks + 1 - even) // 2
    row, column = index // width, index % width
    below = row - even >= column
    i = tl.where(below, row - even, blocks - 1 - row)
    j = tl.where(below, column, blocks - even - column)
    return i, j


@triton.jit
def inner_products(rows, columns, row_inside, column_inside, size, stride, total, BK: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    """Add ``Σ_k rows[i, k] columns[k, j]`` to ``total``; pointers to k = 0 on the way in."""
    for start in range(0, size, BK):
        k = start + tl.arange(0, BK)
        left = tl.load(
            rows[:, None] + (k * stride)[None, :],
            mask=row_inside[:, None] & (k < size)[None, :],
            other=0.0,
        )
        right = tl.load(
            columns[None, :] + (k * stride)[:, None],
            mask=(k < size)[:, None] & column_inside[None, :],
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def inner_squares(rows, inside, size, stride, total, BK: tl.constexpr, PRECISION: tl.constexpr):
    """Add ``Σ_k rows[i, k] rows[j, k]``: the same for a tile on the diagonal, from one load."""
    for start in range(0, size, BK):
        k = start + tl.arange(0, BK)
        block = tl.load(
            rows[:, None] + (k * stride)[None, :],
            mask=inside[:, None] & (k < size)[None, :],
            other=0.0,
        )
        total = tl.dot(block, tl.trans(block), total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=["blocks", "padding"])
def _gram_kernel(
    x,  # [N, T, Q], or indices [N, T, 1]
    d,  # [N, T, P]
    partial,  # [N, pairs (+ pairs)]
    T,
    P,
    Q,
    blocks,
    padding,
    x_n,
    x_r,
    x_t,
    x_q,
    x_width,
    d_n,
    d_t,
    d_p,
    BT: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEXED: tl.constexpr,
    ONCE: tl.constexpr,
    ROWS: tl.constexpr,
    BIAS: tl.constexpr,
):
    program = tl.program_id(0)
    pairs = blocks * (blocks + 1) // 2
    sample = (program // pairs).to(tl.int64)
    pair = program % pairs
    i, j = triangle(pair, blocks)
    t = i * BT + tl.arange(0, BT)
    s = j * BT + tl.arange(0, BT)
    x += sample * x_n
    d += sample * d_n
    of_x = tl.zeros((BT, BT), tl.float32)
    if INDEXED:
        index_t = tl.load(x + t * x_t, mask=t < T, other=padding)
        index_s = tl.load(x + s * x_t, mask=s < T, other=padding)
        of_x += ((index_t[:, None] == index_s[None, :]) & (index_t != padding)[:, None]).to(
            tl.float32
        )
    elif ONCE and i == j:
        left = x + token(t, x_width, x_r, x_t, ROWS)
        of_x = inner_squares(left, t < T, Q, x_q, of_x, BK, PRECISION)
    else:
        left = x + token(t, x_width, x_r, x_t, ROWS)
        right = x + token(s, x_width, x_r, x_t, ROWS)
        of_x = inner_products(left, right, t < T, s < T, Q, x_q, of_x, BK, PRECISION)
    of_d = tl.zeros((BT, BT), tl.float32)
    if ONCE and i == j:
        of_d = inner_squares(d + t * d_t, t < T, P, d_p, of_d, BK, PRECISION)
    else:
        of_d = inner_products(d + t * d_t, d + s * d_t, t < T, s < T, P, d_p, of_d, BK, PRECISION)
    twice = tl.where(i == j, 1.0, 2.0)
    row = partial + sample * (2 * pairs if BIAS else pairs)
    tl.store(row + pair, twice * tl.sum(of_x * of_d))
    if BIAS:
        tl.store(row + pairs + pair, twice * tl.sum(of_d))


@triton.jit(do_not_specialize=["N"])
def _packed_gram_kernel(
    x,  # [N, T, Q]
    d,  # [N, T, P]
    weight,  # [N]
    bias,  # [N]
    N,
    T,
    P,
    Q,
    x_n,
    x_r,
    x_t,
    x_q,
    x_width,
    d_n,
    d_t,
    d_p,
    BT: tl.constexpr,
    ROOM: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BIAS: tl.constexpr,
):
    SAMPLES: tl.constexpr = BT // ROOM
    first = tl.program_id(0).to(tl.int64) * SAMPLES
    place = tl.arange(0, BT)
    sample = first + place // ROOM
    t = place % ROOM
    inside = (sample < N) & (t < T)
    rows = sample * x_n + token(t, x_width, x_r, x_t, ROWS)
    of_x = tl.zeros((BT, BT), tl.float32)
    of_x = inner_products(x + rows, x + rows, inside, inside, Q, x_q, of_x, BK, PRECISION)
    rows = sample * d_n + t * d_t
    of_d = tl.zeros((BT, BT), tl.float32)
    of_d = inner_products(d + rows, d + rows, inside, inside, P, d_p, of_d, BK, PRECISION)
    same = (place // ROOM)[:, None] == (place // ROOM)[None, :]
    ours = first + tl.arange(0, SAMPLES)
    by_token = tl.sum(tl.where(same, of_x * of_d, 0.0), axis=1)
    tl.store(weight + ours, tl.sum(tl.reshape(by_token, (SAMPLES, ROOM)), axis=1), mask=ours < N)
    if BIAS:
        by_token = tl.sum(tl.where(same, of_d, 0.0), axis=1)
        tl.store(bias + ours, tl.sum(tl.reshape(by_token, (SAMPLES, ROOM)), axis=1), mask=ours < N)


@prepared
def prepare(x: Tensor, d: Tensor, bias: bool) -> reduction.Summed | reduction.Stored:
    """Both norms from inner products, for ``x`` ``[N, T, Q]`` and ``d`` ``[N, T, P]``.

    The tokens of x may come in rows, ``[N, rows, width, Q]``.
    """
    samples, tokens, inputs, x_rows = x.shape[0], d.shape[1], x.shape[-1], Rows.of(x)
    products = tokens**2 * (inputs + d.shape[2]) // 2
    chosen = settings("gram", x.dtype, tokens)
    how = product_precision(x.dtype, products, cancels=True)
    room = triton.next_power_of_2(tokens)
    if 2 * room > chosen.tokens:
        return _pairs(x, d, bias, how)
    numbers = (samples, tokens, d.shape[2], inputs, *x_rows[:-1], *d.stride())
    constants = {
        "BT": chosen.tokens,
        "ROOM": room,
        "BK": chosen.inputs,
        "PRECISION": how,
        "ROWS": x_rows.several,
        "BIAS": bias,
        **chosen.options,
    }
    programs = triton.cdiv(samples, chosen.tokens // room)
    return reduction.Stored(Launch(_packed_gram_kernel, programs, numbers, constants), bias)


@prepared
def prepare_embedding(indices: Tensor, d: Tensor, padding_idx: int) -> reduction.Summed:
    """``Σ_v ‖Σ_{t: index_t = v} d_t‖²`` for ``indices`` ``[N, T]`` and ``d`` ``[N, T, Q]``."""
    products = d.shape[1] ** 2 * d.shape[2] // 2
    how = product_precision(d.dtype, products, cancels=True)
    return _pairs(indices[..., None], d, False, how, padding_idx)


def _pairs(
    x: Tensor, d: Tensor, bias: bool, how: str, padding: int | None = None
) -> reduction.Summed:
    chosen, tokens, x_rows = settings("gram", d.dtype, d.shape[1]), d.shape[1], Rows.of(x)
    block = min(chosen.tokens, max(16, triton.next_power_of_2(tokens)))
    blocks = triton.cdiv(tokens, block)
    pairs = blocks * (blocks + 1) // 2
    sizes = (tokens, d.shape[2], x.shape[-1], blocks, -1 if padding is None else padding)
    constants = {
        "BT": block,
        "BK": chosen.inputs,
        "PRECISION": how,
        "INDEXED": padding is not None,
        "ONCE": chosen.once,
        "ROWS": x_rows.several,
        "BIAS": bias,
        **chosen.options,
    }
    numbers = (*sizes, *x_rows[:-1], *d.stride())
    launch = Launch(_gram_kernel, d.shape[0] * pairs, numbers, constants)
    return reduction.Summed(launch, *reduction.weights_and_biases(pairs, pairs if bias else 0))
