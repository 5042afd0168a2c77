"""Normal noise in float64, added to an input and rounded to a fixed grid.

``philox`` gives float32 normals of 32 bits each, whose traces of the input rounding leaves in the
sum. Here two words make one uniform number of 64 bits, four words a pair of normals (Box and
Muller), every step is one rounded float64 operation and none is fused, so that all backends give
the same bits. An input ``[C, *S]`` with ``M = prod(S)`` takes number ``e % 2`` of the counter
``(c ceil(M / 2) + e // 2, sample, input, tag)`` for channel c and flat position e.

``docs/certificates.md`` proves how seldom the rounded sum differs from that of real numbers. What
it needs of this file, and tests check against 40 digits: ``|log| error <= 2^-52 (1 + |log|)``,
``|cos|, |sin| error <= 2^-50``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradood.ops.philox import channels_and_elements, noise_words

_LOG = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)
_SIN = (
    -1.66666666666666324348e-01,
    8.33333333332248946124e-03,
    -1.98412698298579493134e-04,
    2.75573137070700676789e-06,
    -2.50507602534068634195e-08,
    1.58969099521155010221e-10,
)
_COS = (
    4.16666666666666019037e-02,
    -1.38888888888741095749e-03,
    2.48015872894767294178e-05,
    -2.75573143513906633035e-07,
    2.08757232129817482790e-09,
    -1.13596475577881948265e-11,
)
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_HALF_PI = 1.57079632679489655800


def normals(shape: tuple[int, ...], inputs: Tensor, samples: Tensor, key: Tensor) -> Tensor:
    """Standard normals float64 ``[M, *shape]``."""
    channels, elements = channels_and_elements(shape)
    words = noise_words((channels, 2 * elements), inputs, samples, key)
    high, low = words[..., 0::2].double(), words[..., 1::2].double()
    # high 2^32 is exact and so is low + 1/2: one rounding, and never 0.
    uniform = (high * 2.0**32 + (low + 0.5)) * 2.0**-64
    radius = (log(uniform[..., 0]) * -2.0).sqrt()
    cosine, sine = cos_sin(uniform[..., 1])
    numbers = torch.stack((radius * cosine, radius * sine), -1).flatten(2)[..., :elements]
    return numbers.reshape(len(samples), *shape)


def log(u: Tensor) -> Tensor:
    """Natural logarithms: ``k log 2``, and a polynomial in ``s = f / (2 + f)`` for 1 + f.

    The coefficients are those of Sun's fdlibm, ``e_log.c``.
    """
    bits = u.contiguous().view(torch.int64)
    exponent = (bits - 0x3FE6A09E00000000) >> 52  # k with u / 2^k about in [sqrt 1/2, sqrt 2)
    f = (bits - (exponent << 52)).view(torch.float64) - 1.0
    k = exponent.double()
    s = f / (f + 2.0)
    z = s * s
    w = z * z
    even = w * (w * (w * _LOG[5] + _LOG[3]) + _LOG[1])
    odd = z * (w * (w * (w * _LOG[6] + _LOG[4]) + _LOG[2]) + _LOG[0])
    half = f * 0.5 * f
    return k * _LN2_HIGH - ((half - (s * (half + (odd + even)) + k * _LN2_LOW)) - f)


def cos_sin(u: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``2πu``: polynomials within an eighth of a turn, then the right quarter.

    The coefficients are those of Sun's fdlibm, ``k_sin.c`` and ``k_cos.c``.
    """
    quarters = u * 4.0
    k = (quarters + 0.5).long()
    y = (quarters - k.double()) * _HALF_PI
    z = y * y
    s = z * (z * (z * (z * (z * _SIN[5] + _SIN[4]) + _SIN[3]) + _SIN[2]) + _SIN[1]) + _SIN[0]
    s = y + y * z * s
    c = z * (z * (z * (z * (z * _COS[5] + _COS[4]) + _COS[3]) + _COS[2]) + _COS[1]) + _COS[0]
    c = 1.0 - z * 0.5 + z * z * c
    odd = (k & 1).bool()
    cosine, sine = torch.where(odd, s, c), torch.where(odd, c, s)
    cosine = torch.where(((k + 1) & 2).bool(), -cosine, cosine)
    return cosine, torch.where((k & 2).bool(), -sine, sine)


def grid_batch(
    x: Tensor,
    rows: Tensor,
    inputs: Tensor,
    samples: Tensor,
    key: Tensor,
    sigma: float,
    levels: float,
    low: float | None,
    high: float | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """``clamp(round((x[rows] + σ n) levels) / levels, low, high)`` ``[M, C, *S]``.

    ``x`` ``[B, C, *S]`` or ``[B, F]`` float32; ``rows``, ``inputs``, ``samples`` and ``key`` as for
    ``reference.noisy_batch``; ``levels`` steps of the grid in 1. The sum and the rounding (to the
    nearest, ties to even) are float64; a multiplication by the float64 nearest ``1 / levels`` and
    one rounding to float32 follow, then the clamp, then ``dtype``.
    """
    noisy = x[rows].double() + normals(tuple(x.shape[1:]), inputs, samples, key) * sigma
    result = ((noisy * levels).round() * (1.0 / levels)).float()
    if low is not None or high is not None:
        result = result.clamp(low, high)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return result.to(dtype).contiguous(memory_format=layout)
