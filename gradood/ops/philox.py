"""Normal noise as a function of (seed, stream, input, sample, element): no state, any order.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) turns a key of
two words and a counter of four into four words; two words make two normals (Box and Muller). An
input ``[C, *S]`` with ``M = prod(S)`` takes lane ``e % 4`` of the counter ``(c ceil(M / 4) + e //
4, sample, input, tag)`` for channel c and flat position e; one ``[F]`` counts as one channel.

Every step is one rounded float32 operation, none of them fused, so that all backends give the same
bits. The largest magnitude is 6.77: the tails beyond, 1.3e-11 of the mass, are missing.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

#: Of the Random123 distribution: counter, key, and the words that they give.
KNOWN_ANSWERS = (
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)

_WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words from four counter words and two key words, all int64 in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    low, high = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # modulo 2^64, which is all that is needed
        c0, c1 = (b >> 32 & _WORD) ^ c1 ^ low, b & _WORD
        c2, c3 = (a >> 32 & _WORD) ^ c3 ^ high, a & _WORD
        low, high = low + 0x9E3779B9 & _WORD, high + 0xBB67AE85 & _WORD
    return c0, c1, c2, c3


def noise_words(shape: tuple[int, ...], inputs: Tensor, samples: Tensor, key: Tensor) -> Tensor:
    """Words int64 ``[M, C, counters, 4]`` for copies of inputs of ``shape`` ``[C, *S]``."""
    channels, elements = channels_and_elements(shape)
    counters = (elements + 3) // 4
    first = torch.arange(channels * counters, device=key.device, dtype=torch.int64)
    sample, owner = samples[:, None], inputs[:, None]
    words = torch.broadcast_tensors(first, sample, owner, key[1])
    seed = key[0]
    result = philox(words, (seed & _WORD, seed >> 32 & _WORD))
    return torch.stack(result, -1).view(-1, channels, counters, 4)


def normals(shape: tuple[int, ...], inputs: Tensor, samples: Tensor, key: Tensor) -> Tensor:
    """Standard normals float32 ``[M, *shape]``."""
    channels, elements = channels_and_elements(shape)
    numbers = normals_of(noise_words(shape, inputs, samples, key))
    flat = numbers.reshape(len(samples), channels, -1)[..., :elements]
    return flat.reshape(len(samples), *shape)


def normals_of(words: Tensor) -> Tensor:
    """Standard normals float32 from words int64, both ``[..., 4]``."""
    uniform = (words.to(torch.float32) + 0.5) * 2.0**-32
    # The float32 root of a vector library may be an ulp off; rounding the float64 one never is.
    radius = (_log(uniform[..., 0::2]) * -2.0).double().sqrt_().float()
    cosine, sine = _cos_sin(uniform[..., 1::2])
    return torch.stack((radius * cosine, radius * sine), -1).flatten(-2)


def channels_and_elements(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many streams of counters an input has, and how many numbers of each."""
    return (1, shape[0]) if len(shape) == 1 else (shape[0], prod(shape[1:]))


def _log(u: Tensor) -> Tensor:
    """``log u = k log 2 + log(1 + f)``, the last by a polynomial in ``s = f / (2 + f)``."""
    bits = u.contiguous().view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    k = exponent.to(torch.float32)
    s = f / (f + 2.0)
    z = s * s
    w = z * z
    even = w * (w * 0.24279078841 + 0.40000972152)
    odd = z * (w * 0.28498786688 + 0.66666662693)
    half = f * 0.5 * f
    return s * (half + (odd + even)) + k * 9.0580006145e-06 - half + f + k * 0.69313812256


def _cos_sin(u: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``2πu``: polynomials within an eighth of a turn of the nearest quarter."""
    quarters = u * 4.0
    k = (quarters + 0.5).to(torch.int32)
    y = (quarters - k.to(torch.float32)) * 1.57079637050628662109375
    z = y * y
    s = y + y * z * (z * (z * -1.9515295891e-4 + 8.3321608736e-3) - 1.6666654611e-1)
    c = 1.0 - z * 0.5
    c = c + z * z * (z * (z * 2.443315711809948e-5 - 1.388731625493765e-3) + 4.166664568298827e-2)
    odd = (k & 1).bool()
    cosine, sine = torch.where(odd, s, c), torch.where(odd, c, s)
    cosine = torch.where(((k + 1) & 2).bool(), -cosine, cosine)
    return cosine, torch.where((k & 2).bool(), -sine, sine)
