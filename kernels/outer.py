"""``‖Σ_t d_t x_tᵀ‖²``: the per-sample gradient of a matrix, formed in registers and squared there.

``x`` is ``[N, T, Q]`` and ``d`` ``[N, T, P]``, any strides; both norms are ``[N]`` float32.
``N T P Q`` multiply-adds; every tile of P × Q reads its columns of x and d once, so that x is read
``P / BP`` times and d ``Q / BQ`` times, mostly from the L2 cache: tiles of a sample are neighbours.
With one token the gradient has rank one and ``‖d‖² ‖x‖²`` is read off in one pass.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gradood.kernels import reduction
from gradood.kernels.launch import fit, product_precision, settings
from gradood.kernels.layout import Rows, token
from gradood.kernels.prepared import Launch, prepared


@triton.jit(do_not_specialize=["tiles_p", "tiles_q"])
def _outer_kernel(
    x,  # [N, T, Q]
    d,  # [N, T, P]
    partial,  # [N, tiles_p * tiles_q (+ tiles_p)]
    T,
    P,
    Q,
    tiles_p,
    tiles_q,
    x_n,
    x_r,
    x_t,
    x_q,
    x_width,
    d_n,
    d_t,
    d_p,
    BT: tl.constexpr,
    BP: tl.constexpr,
    BQ: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BIAS: tl.constexpr,
):
    program = tl.program_id(0)
    tiles = tiles_p * tiles_q
    sample = (program // tiles).to(tl.int64)
    tile = program % tiles
    p = tile // tiles_q * BP + tl.arange(0, BP)
    q = tile % tiles_q * BQ + tl.arange(0, BQ)
    x_tile = x + sample * x_n + (q * x_q)[None, :]
    d_tile = d + sample * d_n + (p * d_p)[:, None]
    gradient = tl.zeros((BP, BQ), tl.float32)
    total = tl.zeros((BP,), tl.float32)
    for start in range(0, T, BT):
        t = start + tl.arange(0, BT)
        # Transposed by the load: transposing a tile in registers loses asynchronous copies.
        d_block = tl.load(
            d_tile + (t * d_t)[None, :], mask=(p < P)[:, None] & (t < T)[None, :], other=0.0
        )
        place = token(t, x_width, x_r, x_t, ROWS)
        x_block = tl.load(
            x_tile + place[:, None], mask=(t < T)[:, None] & (q < Q)[None, :], other=0.0
        )
        gradient = tl.dot(d_block, x_block, gradient, input_precision=PRECISION)
        if BIAS:
            total += tl.sum(d_block.to(tl.float32), axis=1)
    row = partial + sample * (tiles + (tiles_p if BIAS else 0))
    tl.store(row + tile, tl.sum(gradient * gradient))
    if BIAS:
        if tile % tiles_q == 0:
            tl.store(row + tiles + tile // tiles_q, reduction.vector_sqnorm(total))


@triton.jit
def _rank_one_kernel(
    x,  # [N, Q]
    d,  # [N, P]
    weight,  # [N]
    bias,  # [N]
    P,
    Q,
    x_n,
    x_q,
    d_n,
    d_p,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    x_norm = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, Q, BLOCK):
        q = start + lane
        value = tl.load(x + sample * x_n + q * x_q, mask=q < Q, other=0.0).to(tl.float32)
        x_norm += value * value
    d_norm = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, P, BLOCK):
        p = start + lane
        value = tl.load(d + sample * d_n + p * d_p, mask=p < P, other=0.0).to(tl.float32)
        d_norm += value * value
    norm = tl.sum(d_norm, axis=0)
    tl.store(weight + sample, norm * tl.sum(x_norm, axis=0))
    if BIAS:
        tl.store(bias + sample, norm)


@prepared
def prepare(x: Tensor, d: Tensor, bias: bool) -> reduction.Summed:
    """Both norms by forming the gradient, for ``x`` ``[N, T, Q]`` and ``d`` ``[N, T, P]``.

    The tokens of x may come in rows, ``[N, rows, width, Q]``.
    """
    (samples, tokens, outputs), inputs, x_rows = d.shape, x.shape[-1], Rows.of(x)
    chosen = settings("outer", x.dtype, min(inputs, outputs))
    block_p, block_q = fit(chosen.outputs, outputs), fit(chosen.inputs, inputs)
    tiles_p, tiles_q = triton.cdiv(outputs, block_p), triton.cdiv(inputs, block_q)
    numbers = (tokens, outputs, inputs, tiles_p, tiles_q, *x_rows[:-1], *d.stride())
    constants = {
        "BT": chosen.tokens,
        "BP": block_p,
        "BQ": block_q,
        "PRECISION": product_precision(x.dtype, tokens * inputs * outputs, cancels=False),
        "ROWS": x_rows.several,
        "BIAS": bias,
        **chosen.options,
    }
    launch = Launch(_outer_kernel, samples * tiles_p * tiles_q, numbers, constants)
    sums = reduction.weights_and_biases(tiles_p * tiles_q, tiles_p if bias else 0)
    return reduction.Summed(launch, *sums)


@prepared
def prepare_rank_one(x: Tensor, d: Tensor, bias: bool) -> reduction.Stored:
    """Both norms where there is one token: ``x`` ``[N, Q]`` and ``d`` ``[N, P]``."""
    block = min(1024, max(32, triton.next_power_of_2(max(x.shape[1], d.shape[1]))))
    numbers = (d.shape[1], x.shape[1], *x.stride(), *d.stride())
    constants = {"BLOCK": block, "BIAS": bias, "num_warps": 4 if block >= 512 else 1}
    return reduction.Stored(Launch(_rank_one_kernel, x.shape[0], numbers, constants), bias)
