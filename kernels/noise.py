"""Noisy copies of images: ``(clamp(x + σ n) − mean) / std``, cast, in one write.

``x`` is ``[B, C, *S]`` float32 with any strides, the copies ``[M, C, *S]``. The noise n is counted,
not stored: Philox4x32-10 with the seed as key and the counter ``(c ⌈E/4⌉ + e // 4, sample, input,
tag)`` gives four words, two pairs of normals by Box and Muller's method; element e of channel c
takes number ``e % 4``. Nothing but IEEE additions, multiplications, divisions and square roots, in
one order and never fused, so that every machine draws the same bits. Bytes moved: 4 read (from L2
after the first copy) and the result written; about 90 integer and 40 float32 operations an element.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def uniform(word):
    """``(word + ½) / 2³²`` in float32, for words of 32 bits."""
    return (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10


@triton.jit
def natural_log(u):
    """``log u`` for normal u > 0: exponent and mantissa around √½, then an atanh series."""
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    s = tl.div_rn(f, 2.0 + f)
    z = s * s
    w = z * z
    odd = w * (0.40000972152 + w * 0.24279078841)
    even = z * (0.66666662693 + w * 0.28498786688)
    r = even + odd
    half_square = 0.5 * f * f
    k = exponent.to(tl.float32)
    return s * (half_square + r) + k * 9.0580006145e-06 - half_square + f + k * 0.69313812256


@triton.jit
def cosine_sine(u):
    """``cos 2πu`` and ``sin 2πu`` for u in [0, 1]: nearest quarter turn, then polynomials."""
    quarters = 4.0 * u
    turn = (quarters + 0.5).to(tl.int32)
    y = (quarters - turn.to(tl.float32)) * 1.57079637050628662109375
    z = y * y
    s = y + y * z * (-1.6666654611e-1 + z * (8.3321608736e-3 + z * -1.9515295891e-4))
    c = (
        1.0
        - 0.5 * z
        + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    )
    odd = (turn & 1) != 0
    cosine, sine = tl.where(odd, s, c), tl.where(odd, c, s)
    cosine = tl.where(((turn + 1) & 2) != 0, -cosine, cosine)
    return cosine, tl.where((turn & 2) != 0, -sine, sine)


@triton.jit
def normals(seed, block, sample, image, tag):
    """Four independent standard normals for every counter."""
    zero = block * 0
    w0, w1, w2, w3 = tl.philox(seed, block, zero + sample, zero + image, zero + tag)
    radius = tl.sqrt_rn(-2.0 * natural_log(uniform(w0)))
    cosine, sine = cosine_sine(uniform(w1))
    other = tl.sqrt_rn(-2.0 * natural_log(uniform(w2)))
    other_cosine, other_sine = cosine_sine(uniform(w3))
    return radius * cosine, radius * sine, other * other_cosine, other * other_sine


@triton.jit
def finish(x, noise, low, high, mean, rstd, sigma, LOW: tl.constexpr, HIGH: tl.constexpr,
           MEAN: tl.constexpr, RSTD: tl.constexpr):  # fmt: skip
    """``(clamp(x + σ n) − mean) · rstd``."""
    y = x + sigma * noise
    if LOW:
        y = tl.maximum(y, low)
    if HIGH:
        y = tl.minimum(y, high)
    if MEAN:
        y = y - mean
    if RSTD:
        y = y * rstd
    return y


@triton.jit(do_not_specialize=["blocks"])
def _noisy_kernel(
    x,  # [B, C, E]
    out,  # [M, C, E] or [M, E, C]
    rows,  # [M]
    inputs,  # [M]
    samples,  # [M]
    key,  # [2]: seed, tag
    mean,  # [C]
    rstd,  # [C]
    sigma,
    low,
    high,
    E,
    C,
    blocks,
    x_n,
    x_c,
    x_e,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    MEAN: tl.constexpr,
    RSTD: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    channel_blocks = tl.cdiv(C, BC)
    copy = (program // (blocks * channel_blocks)).to(tl.int64)
    block = program % blocks
    c = program // blocks % channel_blocks * BC + tl.arange(0, BC)
    quarter = block * BLOCK + tl.arange(0, BLOCK)
    counter = (c[None, :] * ((E + 3) // 4) + quarter[:, None]).to(tl.uint32)
    image = tl.load(inputs + copy).to(tl.uint32)
    sample = tl.load(samples + copy).to(tl.uint32)
    n0, n1, n2, n3 = normals(tl.load(key), counter, sample, image, tl.load(key + 1).to(tl.uint32))
    # [BLOCK, BC, 2, 2] with the last two axes counting 0 2, 1 3: lane = 2 * last + first.
    noise = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    noise = tl.reshape(tl.permute(noise, (0, 2, 3, 1)), (4 * BLOCK, BC))
    e = block * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    inside = (e < E)[:, None] & (c < C)[None, :]
    place = (e * x_e)[:, None] + (c * x_c)[None, :]
    clean = tl.load(x + tl.load(rows + copy) * x_n + place, mask=inside, other=0.0)
    centre = 0.0
    scale = 1.0
    if MEAN:
        centre = tl.load(mean + c, mask=c < C, other=0.0)[None, :]
    if RSTD:
        scale = tl.load(rstd + c, mask=c < C, other=1.0)[None, :]
    y = finish(clean, noise, low, high, centre, scale, sigma, LOW, HIGH, MEAN, RSTD)
    if CHANNELS_LAST:
        target = (e * C)[:, None] + c[None, :]
    else:
        target = e[:, None] + (c * E)[None, :]
    tl.store(out + copy * E * C + target, y.to(out.dtype.element_ty), mask=inside)


def noisy_batch(
    x: Tensor,
    rows: Tensor,
    inputs: Tensor,
    samples: Tensor,
    key: Tensor,
    sigma: float,
    low: float | None,
    high: float | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """Noisy copies ``[M, C, *S]`` of rows of ``x``; ids and key lie on the device, see above."""
    copies = rows.shape[0]
    planes = x[:, None] if x.dim() == 2 else x.flatten(2)
    channels, elements = planes.shape[1:]
    innermost = channels_last and channels > 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(copies, *x.shape[1:], dtype=dtype, device=x.device, memory_format=layout)
    block_c = triton.next_power_of_2(min(channels, 16)) if innermost else 1
    block = max(1, min(256 // block_c, triton.next_power_of_2(triton.cdiv(elements, 4))))
    blocks = triton.cdiv(elements, 4 * block)
    _noisy_kernel[(copies * blocks * triton.cdiv(channels, block_c),)](
        planes,
        out,
        rows,
        inputs,
        samples,
        key,
        planes if mean is None else mean,
        planes if rstd is None else rstd,
        sigma,
        0.0 if low is None else low,
        0.0 if high is None else high,
        elements,
        channels,
        blocks,
        *planes.stride(),
        LOW=low is not None,
        HIGH=high is not None,
        MEAN=mean is not None,
        RSTD=rstd is not None,
        CHANNELS_LAST=innermost,
        BC=block_c,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out
