"""Layer and RMS norm in one pass over x and d: statistics, both norms, the gradient that flows on.

``Σ_c (Σ_t d x̂)²`` and ``Σ_c (Σ_t d)²`` for ``x`` and ``d`` ``[N, T, C]``, any strides, with
``x̂ = (x − mean) · rstd`` over the channels of a token, without the mean for RMS norm; and
``rstd (g − mean(g) − x̂ mean(g x̂))`` with ``g = d · scale``. A program holds whole tokens in
registers, so that ``2 N T C`` loads and as many stores as the gradient has are all: bound by
memory, and less than PyTorch's backward pass and a pass for the norms would move. Sums over the
tokens of a program stay by channel; those of a sample's programs are added and squared at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gradood.kernels import reduction
from gradood.kernels.prepared import Launch, prepared

#: Bytes of x that a thread holds, and most warps of a program: with more registers spill.
_BYTES, _WARPS = 32, 16
#: Tokens a program at most; by the sample alone, so that results do not depend on the batch.
_TOKENS = 128


@triton.jit(do_not_specialize=["T", "tokens", "splits"])
def _token_norm_kernel(
    x,  # [N, T, C]
    d,  # [N, T, C]
    scale,  # [C]
    gradient,  # [N, T, C]
    partial,  # [N, 2, splits, C]
    T,
    C,
    tokens,
    splits,
    x_n,
    x_t,
    x_c,
    d_n,
    d_t,
    d_c,
    g_n,
    g_t,
    g_c,
    eps,
    CENTRED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // splits).to(tl.int64)
    split = program % splits
    c = tl.arange(0, BC)
    c_inside = c < C
    width = C * 1.0  # Triton makes a size of one a constant, which has no type to change
    x += sample * x_n + (c * x_c)[None, :]
    d += sample * d_n + (c * d_c)[None, :]
    if GRADIENT:
        gradient += sample * g_n + (c * g_c)[None, :]
        scales = tl.load(scale + c, mask=c_inside, other=0.0).to(tl.float32)[None, :]
    weight = tl.zeros((BT, BC), tl.float32)
    bias = tl.zeros((BT, BC), tl.float32)
    for start in range(0, tokens, BT):
        place = start + tl.arange(0, BT)
        t = split * tokens + place
        t_inside = (place < tokens) & (t < T)
        inside = t_inside[:, None] & c_inside[None, :]
        x_tile = tl.load(x + (t * x_t)[:, None], mask=inside, other=0.0).to(tl.float32)
        d_tile = tl.load(d + (t * d_t)[:, None], mask=inside, other=0.0).to(tl.float32)
        if CENTRED:
            mean = tl.sum(x_tile, axis=1) / width
            x_tile = tl.where(inside, x_tile - mean[:, None], 0.0)
        variance = tl.where(t_inside, tl.sum(x_tile * x_tile, axis=1) / width + eps, 1.0)
        rstd = 1.0 / tl.sqrt(variance)
        x_tile = x_tile * rstd[:, None]
        weight += d_tile * x_tile
        bias += d_tile
        if GRADIENT:
            scaled = d_tile * scales
            flows = scaled - x_tile * (tl.sum(scaled * x_tile, axis=1) / width)[:, None]
            if CENTRED:
                flows = flows - (tl.sum(scaled, axis=1) / width)[:, None]
            flows = (flows * rstd[:, None]).to(gradient.dtype.element_ty)
            tl.store(gradient + (t * g_t)[:, None], flows, mask=inside)
    row = partial + sample * (2 * splits * C) + split * C + c
    tl.store(row, tl.sum(weight, axis=0), mask=c_inside)
    tl.store(row + splits * C, tl.sum(bias, axis=0), mask=c_inside)


def fits(x: Tensor, d: Tensor) -> bool:
    """Whether tokens fit the registers of a program."""
    return int(triton.next_power_of_2(x.shape[2])) <= 32 * _WARPS * _numbers(x, d)


def _numbers(x: Tensor, d: Tensor) -> int:
    return _BYTES // max(x.element_size(), d.element_size())


def token_norm_sqnorm(
    x: Tensor, d: Tensor, eps: float, rms: bool, scale: Tensor | None = None,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Both norms; with ``scale`` ``[C]`` also the gradient of ``x``, into ``gradient``."""
    lies = None if gradient is None else gradient.stride()
    known = _token_norm(x, d, eps, rms, lies)
    flows = x if gradient is None else gradient
    weight, bias = known(x, d, d if scale is None else scale, flows)
    return weight, bias


@prepared
def _token_norm(
    x: Tensor, d: Tensor, eps: float, rms: bool, gradient: tuple[int, ...] | None
) -> reduction.Summed:
    samples, tokens, channels = x.shape
    block = triton.next_power_of_2(channels)
    a_warp = 32 * _numbers(x, d)
    warps = max(1 if block <= 128 else 4 if block <= 512 else 8, block // a_warp)
    rows = max(1, min(triton.next_power_of_2(tokens), a_warp * warps // block))
    splits = triton.cdiv(tokens, _TOKENS)
    constants = {
        "CENTRED": not rms,
        "GRADIENT": gradient is not None,
        "BT": rows,
        "BC": block,
        "num_warps": warps,
    }
    strides = (*x.stride(), *d.stride(), *(gradient or x.stride()))
    numbers = (tokens, channels, triton.cdiv(tokens, splits), splits, *strides, eps)
    launch = Launch(_token_norm_kernel, samples * splits, numbers, constants)
    width = splits * channels
    both = tuple(reduction.Segment(i * width, channels, splits, True) for i in range(2))
    return reduction.Summed(launch, 2 * width, both)
