"""Calls that between them compile every kernel, with every number type and layout it distinguishes.

Tensors are on the ``meta`` device unless another is asked for: launchers look at sizes, strides and
types alone, so that a call for a large batch costs nothing when nothing is launched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

HALF, FLOAT = torch.bfloat16, torch.float32
_ONES, _ZEROS = (1, 1), (0, 0)


class LaunchCase(NamedTuple):
    """One call of an operator, with tensors made on demand."""

    operator: str
    dtype: torch.dtype
    arguments: Callable[[Callable[..., Tensor]], tuple[Any, ...]]
    #: Whether every load of the two large tensors must be 128 bits wide.
    wide: bool = False
    #: Whether it multiplies on tensor cores.
    products: bool = False

    def make(self, device: str = "meta") -> tuple[Any, ...]:
        """The arguments; on a real device, random numbers."""

        def tensor(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            if device == "meta":
                return torch.empty(shape, dtype=dtype, device=device)
            return (torch.randn(shape, device=device, dtype=torch.float32) + 0.25).to(dtype)

        return self.arguments(tensor)


Make = Callable[..., Tensor]


def _last(t: Tensor) -> Tensor:
    """The same shape with the channels innermost."""
    return t.contiguous(memory_format=torch.channels_last)


def _linear(tokens: int, inputs: int, outputs: int, samples: int = 64) -> Callable[[Make], Any]:
    return lambda t: (t(samples, tokens, inputs), t(samples, tokens, outputs), True)


def _pixels(tokens: int, inputs: int, outputs: int) -> Callable[[Make], Any]:
    """Pixels of planes: tokens innermost."""
    return lambda t: (
        t(64, inputs, tokens).transpose(1, 2),
        t(64, outputs, tokens).transpose(1, 2),
        False,
    )


def _conv(
    channels: int, outputs: int, size: int, kernel: int, stride: int = 1, groups: int = 1,
    planes: bool = False, samples: int = 64,
) -> Callable[[Make], Any]:  # fmt: skip
    def arguments(t: Make) -> tuple[Any, ...]:
        out = (size - 1) // stride + 1
        x, d = t(samples, channels, size, size), t(samples, outputs, out, out)
        if not planes:
            x, d = _last(x), _last(d)
        padding = (0 if stride == kernel else kernel // 2,) * 2  # patches meet
        return x, d, (kernel,) * 2, (stride,) * 2, padding, _ONES, groups, planes

    return arguments


def _statistics(channels: int, pixels: int, last: bool) -> Callable[[Make], Any]:
    def arguments(t: Make) -> tuple[Any, ...]:
        x, d = t(64, channels, pixels), t(64, channels, pixels)
        if last:
            x, d = (t(64, pixels, channels).transpose(1, 2) for _ in range(2))
        rows = t(channels, dtype=FLOAT)
        return x, d, rows, rows.abs(), 1e-5

    return arguments


def _scaled(channels: int, pixels: int, last: bool) -> Callable[[Make], Any]:
    unscaled = _statistics(channels, pixels, last)
    return lambda t: (*unscaled(t)[:4], t(channels, dtype=FLOAT), 1e-5)


def _scaled_rows(tokens: int, width: int, rms: bool) -> Callable[[Make], Any]:
    return lambda t: (*_rows(tokens, width)(t), t(width, dtype=FLOAT), 1e-5, rms)


def _rows(tokens: int, width: int, *options: Any) -> Callable[[Make], Any]:
    return lambda t: (t(64, tokens, width), t(64, tokens, width), *options)


def _embedding(t: Make) -> tuple[Any, ...]:
    d = t(64, 128, 768)
    return torch.arange(128, device=d.device, dtype=torch.int64).expand(64, 128) % 50, d, 0


def _noise(last: bool, dtype: torch.dtype) -> Callable[[Make], Any]:
    def arguments(t: Make) -> tuple[Any, ...]:
        x, channel = t(4, 3, 224, 224, dtype=FLOAT), t(3, dtype=FLOAT)
        ids = torch.arange(64, device=x.device, dtype=torch.int64)
        key = torch.arange(2, device=x.device, dtype=torch.int64)
        rows = ids % 4
        return x, rows, rows, ids, key, 0.25, 0.0, 1.0, channel, channel, dtype, last

    return arguments


def _votes(mode: str) -> Callable[[Make], Any]:
    def arguments(t: Make) -> tuple[Any, ...]:
        values = t(1000, 1000) if mode == "argmax" else t(1000)
        thresholds = None if mode == "argmax" else t(100, dtype=FLOAT).sort()[0]
        rows = torch.arange(1000, device=values.device, dtype=torch.int64) // 250
        return values, rows, mode, thresholds, 4

    return arguments


def _norms(dtype: torch.dtype, name: str) -> dict[str, LaunchCase]:
    def case(operator: str, arguments: Any, wide: bool = False, products: bool = False) -> Any:
        return LaunchCase(f"{operator}_sqnorm", dtype, arguments, wide, products)

    cases = {
        "outer, large": case("linear", _linear(1024, 768, 768), True, True),
        "outer, medium": case("linear", _linear(1024, 64, 64), True, True),
        "outer, small": case("linear", _linear(1024, 32, 32), True, True),
        "outer, tokens innermost": case("linear", _pixels(1024, 128, 128), True, True),
        "gram": case("linear", _linear(197, 768, 768), True, True),
        "gram, several samples a tile": case("linear", _linear(16, 768, 768), True, True),
        "rank one": case("linear", _linear(1, 2048, 1008)),
        "conv, large": case("conv", _conv(256, 256, 28, 3), True, True),
        "conv, medium": case("conv", _conv(64, 64, 56, 3), True, True),
        "conv, small": case("conv", _conv(32, 32, 56, 3), True, True),
        "conv, strided": case("conv", _conv(128, 128, 56, 3, 2), True, True),
        "conv, strided, planes": case("conv", _conv(128, 128, 56, 3, 2, planes=True), True, True),
        "conv, five by five": case("conv", _conv(64, 64, 28, 5), True, True),
        "conv, five by five, small": case("conv", _conv(32, 32, 28, 5), True, True),
        "pointwise, strided": case("conv", _conv(256, 512, 56, 1, 2), True, True),
        "pointwise, strided, few pixels": case("conv", _conv(1024, 2048, 14, 1, 2), True, True),
        "conv, groups": case("conv", _conv(256, 256, 28, 3, 1, 8), True, True),
        "conv, planes": case("conv", _conv(64, 64, 56, 3, planes=True), True, True),
        "stem": case("conv", _conv(3, 64, 224, 7, 2), False, True),
        "patches": case("conv", _conv(3, 768, 224, 16, 16), False, True),
        "shift-gram": case("conv", _conv(512, 512, 7, 3), False, True),
        "depthwise 3x3": case("conv", _conv(64, 64, 56, 3, 1, 64)),
        "depthwise 5x5": case("conv", _conv(64, 64, 28, 5, 2, 64)),
        "depthwise 7x7": case("conv", _conv(96, 96, 56, 7, 1, 96)),
        "batch norm, planes": case("batch_norm", _statistics(64, 3136, False)),
        "batch norm, channels last": case("batch_norm", _statistics(64, 3136, True)),
        "batch norm backward, planes": case("batch_norm_backward", _scaled(64, 3136, False)),
        "batch norm backward, channels last": case("batch_norm_backward", _scaled(64, 3136, True)),
        "batch norm backward, few pixels": case("batch_norm_backward", _scaled(512, 49, True)),
        "layer norm backward": case("layer_norm_backward", _scaled_rows(197, 768, False)),
        "layer norm backward, wide": case("layer_norm_backward", _scaled_rows(64, 4096, False)),
        "RMS norm backward": case("layer_norm_backward", _scaled_rows(64, 4096, True)),
        "layer norm": case("layer_norm", _rows(197, 768, 1e-5, False)),
        "RMS norm": case("layer_norm", _rows(197, 768, 1e-5, True)),
        "group norm": case("group_norm", _rows(64, 1024, 8, 1e-5)),
        "bias": case("bias", lambda t: (t(64, 197, 768).transpose(1, 2),)),
        "embedding": case("embedding", _embedding, False, True),
    }
    return {f"{key}, {name}": value for key, value in cases.items()}


def launch_cases() -> dict[str, LaunchCase]:
    """Every case by name."""
    half = torch.float16
    cases = _norms(HALF, "bfloat16") | _norms(FLOAT, "float32")
    cases["outer, large, float16"] = LaunchCase(
        "linear_sqnorm", half, _linear(1024, 768, 768), True, True
    )
    cases["gram, float16"] = LaunchCase("linear_sqnorm", half, _linear(197, 768, 768), True, True)
    cases["conv, large, float16"] = LaunchCase(
        "conv_sqnorm", half, _conv(256, 256, 28, 3), True, True
    )
    for name, last, dtype in (("planes", False, HALF), ("channels last", True, HALF)):
        cases[f"noise, {name}"] = LaunchCase("noisy_batch", FLOAT, _noise(last, dtype))
    cases["noise, float32"] = LaunchCase("noisy_batch", FLOAT, _noise(False, FLOAT))
    for mode in ("argmax", "above", "histogram"):
        cases[f"votes, {mode}"] = LaunchCase("vote_count", FLOAT, _votes(mode))
    return cases
