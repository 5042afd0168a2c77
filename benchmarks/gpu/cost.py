"""What the norms of a model would take on an H100, computed from bytes and multiply-adds.

Nothing here was measured. Each call takes the longest of three: bytes from memory at 85 % of its
peak rate, bytes that tiles read through the L2 cache at 5.5 TB/s, multiply-adds on tensor cores at
60 % of theirs. Tiles are those of the launch table, in half precision. Where a norm comes out of a
kernel that also makes the gradient that flows on, it costs what that kernel moves more than
PyTorch's would, and no launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from gradood.kernels import affine, token_norm
from gradood.kernels.launch import Settings, _settings, fit
from gradood.kernels.pixel_gram import MOST_PIXELS
from gradood.ops import choice

_MEMORY, _L2, _TENSOR_CORES = 3.35e12 * 0.85, 5.5e12, 989e12 * 0.6
_BYTES = 2  # a number


class Cost(NamedTuple):
    """Multiply-adds counted twice, bytes through L2, and bytes from memory beside x and d once."""

    operations: float = 0
    through_l2: float = 0
    extra: float = 0
    launches: int = 1
    #: Bytes that PyTorch's backward pass would have moved, and this one spares.
    spared: float = 0


def milliseconds(
    calls: Sequence[Sequence[Any]], samples: int, planes: bool = False
) -> tuple[float, int]:
    """Computed time and launches of the calls ``[count, operator, x, d, …]`` of one pass.

    One launch adds up what all of them left behind. Where channels lie as ``planes``, convolutions
    copy what their kernels cannot read so; copies are bound by memory, whatever the kernels are.
    """
    total, launches = 0.0, 1
    for count, operator, x, d, *geometry in calls:
        cost = _COSTS[operator](samples, x, d, *geometry)
        moved = _BYTES * samples * (prod(x) + prod(d)) + cost.extra - cost.spared
        bounds = (moved / _MEMORY, cost.through_l2 / _L2, cost.operations / _TENSOR_CORES)
        total += count * max(bounds)
        if planes and operator == "conv":
            total += count * _copied(samples, x, d, *geometry) / _MEMORY
        launches += count * cost.launches
    return 1e3 * total, launches


def _bucket(size: int) -> str:
    return "small" if size <= 32 else "medium" if size < 128 else "large"


def _tiles(family: str, size: int) -> Settings:
    return _settings("sm_90", family, "half", _bucket(size))


def _gram(samples: int, tokens: int, width: int, tiles: int | None = None) -> Cost:
    """``width`` numbers a token, of x and d together; tiles as of another number of tokens."""
    chosen = _tiles("gram", tokens if tiles is None else tiles)
    room = 1 << (tokens - 1).bit_length()
    block = chosen.tokens
    if 2 * room <= block:
        tiles = -(-samples // (block // room))
        return Cost(2 * tiles * block**2 * width, 2 * tiles * block * width * _BYTES)
    block = min(block, max(16, room))
    blocks = -(-tokens // block)
    pairs = blocks * (blocks + 1) // 2
    diagonal = blocks if chosen.once else 2 * blocks
    rows = (diagonal + 2 * (pairs - blocks)) * block
    operations = 2 * samples * pairs * block**2 * width
    return Cost(operations, samples * rows * width * _BYTES)


def _outer(samples: int, tokens: int, inputs: int, outputs: int) -> Cost:
    chosen = _tiles("outer", min(inputs, outputs))
    return _direct(chosen, samples, tokens, inputs, outputs, 1)


def _direct(
    chosen: Settings, samples: int, tokens: int, columns: int, outputs: int, taps: int
) -> Cost:
    block_p, block_q = fit(chosen.outputs, outputs), fit(chosen.inputs, columns)
    tiles_p, tiles_q = -(-outputs // block_p), -(-columns // block_q) * taps
    rows = -(-tokens // chosen.tokens) * chosen.tokens
    operations = 2 * samples * tiles_p * block_p * tiles_q * block_q * rows
    return Cost(operations, samples * tiles_p * tiles_q * rows * (block_p + block_q) * _BYTES)


def _linear(samples: int, x: Sequence[int], d: Sequence[int]) -> Cost:
    (tokens, inputs), outputs = x, d[1]
    match choice.linear(tokens, inputs, outputs, choice.TRITON):
        case "outer":
            return Cost()
        case "gram":
            return _gram(samples, tokens, inputs + outputs)
        case _:
            return _outer(samples, tokens, inputs, outputs)


def _conv(
    samples: int,
    x: Sequence[int],
    d: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
) -> Cost:
    kind = choice.conv(x, d, kernel, stride, padding, groups, choice.TRITON)
    channels, outputs, pixels, tokens = x[0], d[0], prod(x[1:]), prod(d[1:])
    if kind == "shift_gram" and pixels <= MOST_PIXELS:
        of_x, of_d = _gram(samples, pixels, channels, 64), _gram(samples, tokens, outputs, 64)
        blocks = -(-tokens // 64)
        shifted = samples * blocks * (blocks + 1) // 2 * 64**2 * 4 * prod(kernel)
        gram = samples * pixels * -(-pixels // 16) * 16 * 4 * 2
        l2 = of_x.through_l2 + of_d.through_l2 + shifted
        return Cost(of_x.operations + of_d.operations, l2, gram, 2)
    if kind == "pointwise":
        left_out = _BYTES * samples * channels * (pixels - tokens)
        return _linear(samples, (tokens, channels), (tokens, outputs))._replace(extra=-left_out)
    if kind == "depthwise":
        return Cost()
    flat, taps = channels // groups < 16, prod(kernel)
    columns = channels // groups * (taps if flat else 1)
    size = min(columns, outputs // groups)
    if not flat and tuple(kernel) == (3, 3) and max(stride) == 1:
        chosen = _tiles("conv3x3", size)
        one = _direct(chosen, samples, (d[1] + 2) * d[2], columns, outputs // groups, 1)
        return Cost(9 * one.operations, 3 * one.through_l2)
    chosen = _tiles("stem" if flat else "conv", size)
    return _direct(chosen, samples, tokens, columns, outputs // groups, 1 if flat else taps)


def _copied(
    samples: int,
    x: Sequence[int],
    d: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
) -> float:
    """Bytes read and written to bring channels innermost; left-out pixels of rows are read."""
    kind = choice.conv(x, d, kernel, stride, padding, groups, choice.TRITON)
    if kind == "pointwise":
        return _BYTES * samples * x[0] * prod(d[1:]) * (stride[-1] - 1)
    too_large = kind == "shift_gram" and prod(x[1:]) > MOST_PIXELS
    if kind == "shift_gram" and not too_large:
        return 0
    three = tuple(kernel) == (3, 3) and max(stride) == 1 and x[0] // groups >= 16
    in_place = (kind == "direct" or too_large) and not three and prod(d[1:]) % 16 == 0
    return 2 * _BYTES * samples * (prod(x) + (0 if in_place else prod(d)))


def _layer_norm(samples: int, x: Sequence[int], d: Sequence[int]) -> Cost:
    """PyTorch's own backward pass reads x and d, too; what is left are sums by channel."""
    (tokens, channels), moved = x, 2 * _BYTES * samples * prod(x)
    sums = 2 * -(-tokens // token_norm._TOKENS) * channels * 4
    return Cost(extra=2 * samples * sums, launches=0, spared=moved)


def _batch_norm(samples: int, x: Sequence[int], d: Sequence[int]) -> Cost:
    """PyTorch's own reads d alone."""
    (channels, tokens), moved = x, _BYTES * samples * prod(d)
    splits = -(-tokens // affine._TOKENS)
    sums = 2 * splits * channels * 4 if splits > 1 else 0
    return Cost(extra=2 * samples * sums, launches=0, spared=moved)


_COSTS: dict[str, Any] = {
    "linear": _linear,
    "conv": _conv,
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
}
