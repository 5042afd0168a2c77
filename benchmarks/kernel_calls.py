"""Operator calls over awkward shapes, and memory that shows every element read by mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradood.kernels.launch import INTERPRETING
from gradood.ops import reference

DEVICE = "cpu" if INTERPRETING else "cuda"


class Call(NamedTuple):
    """One operator call: its name and arguments by position."""

    op: str
    arguments: tuple[Any, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> Call:
        """Change x and d, not what is known of them."""
        changed = tuple(
            change(a) if i < 2 and isinstance(a, Tensor) and a.is_floating_point() else a
            for i, a in enumerate(self.arguments)
        )
        return Call(self.op, changed)

    def expected(self) -> tuple[Tensor, ...]:
        """The reference in float64."""
        exact = (a.double() if _real(a) else a for a in self.arguments)
        result = getattr(reference, self.op)(*exact)
        return result if isinstance(result, tuple) else (result,)


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _tensor(*shape: int) -> Tensor:
    """Numbers whose sums do not cancel, so that errors are those of the arithmetic."""
    return torch.randn(shape) + 0.5


def _linear(tokens: int, inputs: int, outputs: int, samples: int = 3) -> Call:
    x, d = _tensor(samples, tokens, inputs), _tensor(samples, tokens, outputs)
    return Call("linear_sqnorm", (x, d, True))


def _conv(
    channels: int,
    outputs: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    bias: bool = True,
) -> Call:
    options = [v if isinstance(v, tuple) else (v,) * len(size) for v in (stride, padding, dilation)]
    out = [
        (s + 2 * p - dil * (k - 1) - 1) // st + 1
        for s, k, st, p, dil in zip(size, kernel, *options, strict=True)
    ]
    x, d = _tensor(2, channels, *size), _tensor(2, outputs, *out)
    return Call("conv_sqnorm", (x, d, kernel, *options, groups, bias))


def _rows(op: str, shape: tuple[int, ...], *options: Any) -> Call:
    x = _tensor(*shape)
    return Call(op, (x, x + _tensor(*shape), *options))  # so that sums of d x̂ do not cancel


def _embedding(tokens: int, width: int, vocabulary: int, padding: int) -> Call:
    indices = torch.randint(0, vocabulary, (2, tokens))
    return Call("embedding_sqnorm", (indices, _tensor(2, tokens, width), padding))


def _make() -> dict[str, Call]:
    torch.manual_seed(0)
    calls = {
        "rank one": _linear(1, 41, 17),
        "rank one, wide": _linear(1, 1271, 3),
        "outer": _linear(70, 33, 47),
        "outer, several tiles": _linear(90, 70, 65),
        "outer, one column": _linear(401, 1, 7),
        "gram": _linear(33, 48, 130),
        "gram, several tiles": _linear(150, 260, 270),
        "gram, two tiles": _linear(100, 250, 130, 2),
        "gram, seven samples in two tiles": _linear(11, 40, 70, 7),
        "gram, half a tile": _linear(32, 65, 66, 3),
        "gram, two tokens": _linear(2, 41, 17, 33),
        "conv": _conv(17, 9, (9, 7), (3, 3), 1, 1),
        "conv, several tiles": _conv(70, 66, (9, 8), (3, 3), 1, 1),
        "conv, strided and dilated": _conv(18, 20, (15, 14), (3, 2), (2, 3), (2, 1), (2, 3)),
        "conv, more padding than kernel": _conv(16, 5, (5, 6), (2, 2), 1, 2),
        "conv, groups": _conv(34, 6, (8, 8), (3, 3), 2, 1, 1, 2),
        "conv, 1d": _conv(16, 8, (41,), (5,), 3, 2),
        "conv, 3d": _conv(5, 6, (5, 6, 7), (3, 2, 3), (1, 2, 1), (1, 0, 1)),
        "conv, 3d wide": _conv(16, 7, (4, 5, 6), (2, 3, 3), 1, (1, 1, 0), (2, 1, 1)),
        "conv, many pixels": _conv(16, 16, (41, 41), (3, 3), 1, 1, 1, 1, False),
        "conv, tiles": _conv(17, 20, (10, 13), (3, 3), 1, (1, 0)),
        "conv, dilated, wider than the image": _conv(17, 33, (9, 5), (3, 3), 1, (2, 3), (2, 3)),
        "conv, three by three groups": _conv(32, 48, (17, 18), (3, 3), 1, (0, 2), 1, 2),
        "stem": _conv(3, 16, (16, 17), (7, 7), 2, 3),
        "stem, groups": _conv(6, 9, (9, 9), (3, 3), 1, 1, 1, 3),
        "patches": _conv(3, 48, (16, 16), (4, 4), 4),
        "pointwise": _conv(32, 48, (5, 5), (1, 1)),
        "pointwise, strided": _conv(17, 8, (9, 9), (1, 1), 2),
        "pointwise, strided, a few tokens": _conv(60, 70, (5, 5), (1, 1), 2),
        "pointwise, strided, many tokens": _conv(18, 20, (19, 25), (1, 1), (2, 3)),
        "pointwise, strided, 3d": _conv(18, 20, (5, 6, 7), (1, 1, 1), (2, 2, 3)),
        "pointwise, padded": _conv(20, 8, (5, 5), (1, 1), 1, 1),
        "shift-gram": _conv(96, 80, (4, 4), (3, 3), 1, 1),
        "shift-gram, several tiles": _conv(130, 120, (9, 9), (3, 3), 1, 1),
        "shift-gram, strided": _conv(130, 140, (8, 7), (3, 2), (2, 1), 1),
        "depthwise": _conv(20, 20, (9, 9), (3, 3), 1, 1, 1, 20),
        "depthwise, strided": _conv(37, 37, (10, 10), (5, 3), 2, (2, 1), 1, 37),
        "depthwise, multiplier": _conv(6, 18, (8, 8), (3, 3), 1, 1, 1, 6),
        "depthwise 7x7": _conv(3, 3, (14, 14), (7, 7), 1, 3, 1, 3),
        "depthwise, 3d": _conv(4, 4, (4, 5, 6), (3, 3, 3), 1, 1, 1, 4),
        "depthwise, many pixels": _conv(3, 3, (37, 37), (3, 3), 1, 1, 1, 3, False),
        "layer norm": _rows("layer_norm_sqnorm", (3, 17, 41), 1e-5, False),
        "layer norm, wide": _rows("layer_norm_sqnorm", (2, 3, 1201), 1e-5, False),
        "RMS norm": _rows("layer_norm_sqnorm", (2, 41, 17), 1e-5, True),
        "layer norm, several programs": _rows("layer_norm_sqnorm", (2, 301, 33), 1e-5, False),
        "layer norm, wider than registers": _rows("layer_norm_sqnorm", (1, 2, 8200), 1e-5, False),
        "layer norm of one number": _rows("layer_norm_sqnorm", (2, 3, 1), 1e-5, False),
        "RMS norm of any size": _rows("layer_norm_sqnorm", (2, 5, 7), 0.0, True),
        "group norm": _rows("group_norm_sqnorm", (2, 64, 41), 8, 1e-2),
        "group norm, long": _rows("group_norm_sqnorm", (2, 6, 1201), 2, 1e-5),
        "instance norm": _rows("group_norm_sqnorm", (2, 17, 41), 17, 1e-5),
        "embedding": _embedding(17, 41, 5, -1),
        "embedding, padding": _embedding(70, 9, 3, 0),
        "embedding, several tiles": _embedding(130, 70, 1000, 0),
    }
    shapes = (2, 1, 1), (3, 17, 41), (2, 41, 17), (2, 70, 70), (2, 3, 1201), (1, 33, 2101)
    for shape in shapes:
        statistics = torch.randn(shape[1]), torch.rand(shape[1]) + 0.5
        calls[f"batch norm {shape}"] = _rows("batch_norm_sqnorm", shape, *statistics, 1e-5)
        both = (*statistics, torch.randn(shape[1]), 1e-5)
        calls[f"batch norm backward {shape}"] = _rows("batch_norm_backward_sqnorm", shape, *both)
        scale = torch.randn(shape[2])
        for rms in (False, True) if shape[2] > 1 else ():  # one number flows on as zero
            name = f"{'RMS' if rms else 'layer'} norm backward {shape}"
            calls[name] = _rows("layer_norm_backward_sqnorm", shape, scale, 1e-5, rms)
        calls[f"bias {shape}"] = Call("bias_sqnorm", (_tensor(*shape),))
    return calls


CALLS = _make()


def poisoned(t: Tensor) -> Tensor:
    """The same tensor, every gap and both ends of its memory filled with NaN."""
    if not t.is_floating_point():
        return t
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    memory = torch.full((extent + 128,), torch.nan, dtype=t.dtype, device=t.device)
    return memory.as_strided(t.shape, t.stride(), 64).copy_(t)


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if t.dim() > 2 else t


def permuted(t: Tensor) -> Tensor:
    """The last dimension the slowest in memory."""
    return t.movedim(-1, 0).contiguous().movedim(0, -1)


def strided(t: Tensor) -> Tensor:
    """Gaps between the elements."""
    wide = t.new_zeros(*t.shape[:-1], 3 * t.shape[-1] + 1)
    wide[..., 1::3] = t
    return wide[..., 1::3]


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels last": channels_last,
    "permuted": permuted,
    "strided": strided,
}


def relative_error(call: Call, run: Callable[[Call], Any]) -> float:
    """Largest relative error against the float64 reference; NaN where NaN was read."""
    there = Call(call.op, tuple(a.to(DEVICE) if isinstance(a, Tensor) else a
                                for a in call.arguments))  # fmt: skip
    got, expected = run(there), call.expected()
    got = got if isinstance(got, tuple) else (got,)
    assert [g.shape for g in got] == [e.shape for e in expected]
    assert all(g.dtype == torch.float32 for g in got if g.dim() == 1)
    errors = [_error(g.cpu(), e) for g, e in zip(got, expected, strict=True) if e.numel()]
    return torch.stack(errors).max().item()


def _error(got: Tensor, expected: Tensor) -> Tensor:
    """Of norms relative to each; of gradients to a sample's largest, beyond their own rounding."""
    error = (got.double() - expected).abs()
    if expected.dim() == 1:
        return (error / expected.abs().clamp_min(1e-30)).max()
    error = error - torch.finfo(got.dtype).eps * expected.abs()
    return (error.flatten(1) / expected.flatten(1).abs().amax(1, True).clamp_min(1e-30)).max()
