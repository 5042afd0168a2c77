"""The noise of every backend, once more in NumPy: the kernels must equal it bit for bit.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011),
then Box and Muller's method in float32 with polynomials for the logarithm, the cosine and the sine;
no operation is fused with another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Random123's known answers: counter, key, and the four words that they give.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_F = np.float32


def philox(seed: int, counter: tuple[Any, Any, Any, Any]) -> list[NDArray[np.uint32]]:
    """Four words for every counter; its parts broadcast."""
    words = [np.asarray(c, np.uint64) & _LOW for c in np.broadcast_arrays(*counter)]
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        first, second = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        words = [
            (second >> _HALF) ^ words[1] ^ np.uint64(low),
            second & _LOW,
            (first >> _HALF) ^ words[3] ^ np.uint64(high),
            first & _LOW,
        ]
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return [w.astype(np.uint32) for w in words]


def normals(words: list[NDArray[np.uint32]]) -> list[NDArray[np.float32]]:
    """Two pairs of standard normals from four words."""
    uniforms = [(w.astype(_F) + _F(0.5)) * _F(2.0**-32) for w in words]
    result = []
    for first, second in (uniforms[:2], uniforms[2:]):
        radius = np.sqrt(_F(-2.0) * _log(first))
        cosine, sine = _cosine_sine(second)
        result += [radius * cosine, radius * sine]
    return result


def noise(
    seed: int, tag: int, image: int, sample: int, channels: int, elements: int
) -> NDArray[np.float32]:
    """The noise of one copy of one input, ``[channels, elements]``."""
    blocks = -(-elements // 4)
    counter = np.arange(channels * blocks, dtype=np.uint64)
    numbers = normals(philox(seed, (counter, sample, image, tag)))
    return np.stack(numbers, -1).reshape(channels, 4 * blocks)[:, :elements]


def _log(u: NDArray[np.float32]) -> NDArray[np.float32]:
    bits = u.view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> 23
    f = (bits - (exponent << 23)).astype(np.int32).view(_F) - _F(1)
    s = f / (_F(2) + f)
    z = s * s
    w = z * z
    odd = w * (_F(0.40000972152) + w * _F(0.24279078841))
    even = z * (_F(0.66666662693) + w * _F(0.28498786688))
    r = even + odd
    half = _F(0.5) * f * f
    k = exponent.astype(_F)
    found: NDArray[np.float32] = (
        s * (half + r) + k * _F(9.0580006145e-06) - half + f + k * _F(0.69313812256)
    )
    return found


def _cosine_sine(u: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    quarters = _F(4) * u
    turn = (quarters + _F(0.5)).astype(np.int32)
    y = (quarters - turn.astype(_F)) * _F(1.57079637050628662109375)
    z = y * y
    s = y + y * z * (_F(-1.6666654611e-1) + z * (_F(8.3321608736e-3) + z * _F(-1.9515295891e-4)))
    tail = _F(-1.388731625493765e-3) + z * _F(2.443315711809948e-5)
    c = _F(1) - _F(0.5) * z + z * z * (_F(4.166664568298827e-2) + z * tail)
    odd = (turn & 1) != 0
    cosine, sine = np.where(odd, s, c), np.where(odd, c, s)
    cosine = np.where((turn + 1) & 2, -cosine, cosine)
    return cosine, np.where(turn & 2, -sine, sine)
