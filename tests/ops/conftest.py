"""Operator calls over awkward shapes, shared by the tests of every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from gradood.ops import reference


class Geometry(NamedTuple):
    """A convolution: channels in and out, input size, then the usual options."""

    inputs: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    groups: int = 1

    @property
    def options(self) -> tuple[tuple[int, ...], ...]:
        axes = len(self.size)
        ones, zeros = (1,) * axes, (0,) * axes
        return self.kernel, self.stride or ones, self.padding or zeros, self.dilation or ones

    def tensors(self, samples: int = 2) -> tuple[Tensor, Tensor]:
        output = [
            (size + 2 * p - dilation * (k - 1) - 1) // s + 1
            for size, k, s, p, dilation in zip(self.size, *self.options, strict=True)
        ]
        x = torch.randn(samples, self.inputs, *self.size)
        return x, torch.randn(samples, self.outputs, *output)


GEOMETRIES = {
    "1d": Geometry(5, 7, (17,), (3,)),
    "1d strided, padded": Geometry(16, 8, (41,), (5,), (3,), (2,)),
    "1d grouped": Geometry(6, 9, (19,), (3,), None, (1,), None, 3),
    "same": Geometry(17, 9, (9, 7), (3, 3), None, (1, 1)),
    "valid": Geometry(16, 16, (8, 8), (3, 3)),
    "strided": Geometry(16, 24, (9, 8), (3, 3), (2, 2), (1, 1)),
    "uneven stride": Geometry(33, 17, (11, 12), (3, 2), (3, 1), (0, 1)),
    "dilated": Geometry(4, 40, (12, 13), (3, 3), None, (2, 2), (2, 2)),
    "dilated and strided": Geometry(18, 3, (15, 14), (3, 2), (2, 3), (2, 1), (2, 3)),
    "few channels": Geometry(3, 16, (16, 16), (3, 3), None, (1, 1)),
    "patches": Geometry(3, 48, (16, 16), (4, 4), (4, 4)),
    "even kernel": Geometry(8, 8, (7, 7), (2, 4), None, (1, 3)),
    "pointwise": Geometry(32, 48, (5, 5), (1, 1)),
    "pointwise, strided": Geometry(17, 8, (9, 9), (1, 1), (2, 2)),
    "pointwise, padded": Geometry(8, 8, (5, 5), (1, 1), None, (1, 1)),
    "pointwise, long rows": Geometry(5, 21, (23, 19), (1, 1)),
    "pointwise, two chunks": Geometry(9, 6, (41, 41), (1, 1)),
    "pointwise, grouped": Geometry(34, 18, (13, 17), (1, 1), None, None, None, 2),
    "pointwise, one position": Geometry(70, 33, (1, 1), (1, 1)),
    "kernel as large as the image": Geometry(8, 16, (5, 5), (5, 5)),
    "many channels, few pixels": Geometry(96, 80, (4, 4), (3, 3), None, (1, 1)),
    "many pixels": Geometry(16, 16, (41, 41), (3, 3), None, (1, 1)),
    "tiles": Geometry(40, 33, (13, 10), (3, 3), None, (1, 1)),
    "tiles, no padding": Geometry(33, 28, (11, 19), (3, 3)),
    "tiles, more padding than image": Geometry(16, 16, (5, 7), (3, 3), None, (2, 4)),
    "tiles, grouped": Geometry(64, 46, (9, 14), (3, 3), None, (1, 0), None, 2),
    "tiles of planes": Geometry(31, 29, (3, 9, 12), (1, 3, 3), (1, 1, 1), (0, 1, 1)),
    "tiles, several strips": Geometry(40, 33, (38, 45), (3, 3), None, (1, 1)),
    "one pixel": Geometry(41, 3, (1, 1), (1, 1)),
    "one of everything": Geometry(1, 1, (1, 1), (1, 1)),
    "grouped": Geometry(8, 12, (7, 7), (3, 3), None, (1, 1), None, 4),
    "grouped, strided": Geometry(34, 4, (8, 8), (3, 3), (2, 2), (1, 1), None, 2),
    "depthwise": Geometry(20, 20, (9, 9), (3, 3), None, (1, 1), None, 20),
    "depthwise, strided": Geometry(17, 17, (10, 10), (5, 3), (2, 2), (2, 1), None, 17),
    "depthwise, rows": Geometry(21, 21, (9, 16), (3, 3), None, (1, 1), None, 21),
    "depthwise, rows of vectors": Geometry(3, 6, (13, 61), (5, 5), None, (2, 1), None, 3),
    "depthwise, rows of seven": Geometry(5, 5, (4, 14), (7, 4), None, (6, 2), None, 5),
    "depthwise, rows, more padding": Geometry(2, 2, (3, 30), (3, 9), None, (4, 5), None, 2),
    "depthwise, few pixels": Geometry(35, 35, (2, 3), (3, 3), None, (1, 1), None, 35),
    "depthwise with multiplier": Geometry(6, 18, (8, 8), (3, 3), None, (1, 1), None, 6),
    "depthwise 7x7": Geometry(3, 3, (14, 14), (7, 7), None, (3, 3), None, 3),
    "3d": Geometry(5, 6, (5, 6, 7), (3, 2, 3), (1, 2, 1), (1, 0, 1)),
    "3d grouped, dilated": Geometry(4, 6, (7, 6, 5), (2, 2, 2), None, (1, 1, 1), (2, 1, 1), 2),
    "3d depthwise": Geometry(4, 4, (4, 5, 6), (3, 3, 3), None, (1, 1, 1), None, 4),
}


class Case(NamedTuple):
    """One operator call: arguments of ``gradood.ops`` by position."""

    op: str
    arguments: tuple[Any, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> Case:
        """Change every floating-point tensor."""
        return Case(
            self.op,
            tuple(
                change(a) if isinstance(a, Tensor) and a.is_floating_point() else a
                for a in self.arguments
            ),
        )

    def expected(self) -> tuple[Tensor, ...]:
        """The reference in float64."""
        exact = self.map(Tensor.double)
        return as_tuple(getattr(reference, self.op)(*exact.arguments))


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _linear(tokens: int, inputs: int, outputs: int) -> Case:
    x, d = torch.randn(2, tokens, inputs), torch.randn(2, tokens, outputs)
    return Case("linear_sqnorm", (x, d, True))


def _rows(op: str, shape: tuple[int, ...], *options: Any) -> Case:
    return Case(op, (torch.randn(shape) + 0.5, torch.randn(shape), *options))


def make_cases() -> dict[str, Case]:
    """Every operator over odd shapes, from one seed."""
    torch.manual_seed(0)
    cases = {
        f"conv {name}": Case("conv_sqnorm", (*g.tensors(), *g.options, g.groups, True))
        for name, g in GEOMETRIES.items()
    }
    for shape in (
        (1, 1, 1), (1, 401, 17), (3, 17, 41), (17, 41, 3), (41, 401, 64), (401, 41, 3),
        (401, 17, 16), (64, 48, 96), (150, 130, 140), (3, 1, 401),
    ):  # fmt: skip
        cases[f"linear {shape}"] = _linear(*shape)
    for shape in ((2, 1, 1), (3, 17, 41), (2, 41, 17), (2, 401, 3), (2, 64, 400), (2, 3, 1201),
                  (2, 37, 2), (2, 50, 4), (3, 41, 8)):  # fmt: skip
        channels = shape[1]
        statistics = torch.randn(channels), torch.rand(channels) + 0.5
        cases[f"batch_norm {shape}"] = _rows("batch_norm_sqnorm", shape, *statistics, 1e-5)
        name = f"batch_norm backward {shape}"
        both = (*statistics, torch.randn(channels), 1e-5)
        cases[name] = _rows("batch_norm_backward_sqnorm", shape, *both)
        both = (*statistics, None, 1e-5)
        cases[f"{name}, no weight"] = _rows("batch_norm_backward_sqnorm", shape, *both)
        cases[f"group_norm {shape}"] = _rows("group_norm_sqnorm", shape, 1, 1e-5)
        cases[f"bias {shape}"] = Case("bias_sqnorm", (torch.randn(shape),))
    cases["group_norm 8 groups"] = _rows("group_norm_sqnorm", (2, 64, 41), 8, 1e-5)
    for shape in ((3, 17, 41), (2, 41, 17), (2, 3, 401), (2, 401, 64), (2, 1, 1201)):
        for rms in (False, True):
            name = f"{'rms' if rms else 'layer'}_norm {shape}"
            cases[name] = _rows("layer_norm_sqnorm", shape, 1e-5, rms)
            name = name.replace("_norm", "_norm backward")
            scale = torch.randn(shape[2])
            cases[name] = _rows("layer_norm_backward_sqnorm", shape, scale, 1e-5, rms)
    for tokens, width, vocabulary in ((1, 1, 1), (17, 41, 5), (401, 3, 1000), (64, 64, 2)):
        indices = torch.randint(0, vocabulary, (2, tokens))
        for padding in (-1, 0):
            name = f"embedding {tokens, width, vocabulary, padding}"
            arguments = (indices, torch.randn(2, tokens, width), padding)
            cases[name] = Case("embedding_sqnorm", arguments)
    for shape in ((2, 1, 1), (3, 17, 41), (2, 41, 17), (2, 401, 3), (2, 130, 70), (2, 3, 2051)):
        cases[f"channel sums {shape}"] = Case("channel_sums", (torch.randn(shape) + 0.5,))
    return cases


CASES = make_cases()


@pytest.fixture(params=list(CASES), scope="session")
def case(request: pytest.FixtureRequest) -> Case:
    """Each operator call in turn."""
    return CASES[request.param]


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    """All operator calls by name."""
    return CASES


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Compare results with the float64 reference, relative to each."""

    def check(got: Any, expected: tuple[Tensor, ...], tolerance: float) -> None:
        got = as_tuple(got)
        assert len(got) == len(expected)
        for actual, wanted in zip(got, expected, strict=True):
            rtol, atol = tolerance, 1e-300
            if wanted.dim() > 1:  # a gradient: maybe in half precision, its elements may cancel
                rtol = max(tolerance, torch.finfo(actual.dtype).eps)
                atol = rtol * wanted.abs().nan_to_num(0, 0, 0).max().item() if wanted.numel() else 0
            torch.testing.assert_close(
                actual.double(), wanted.double(), rtol=rtol, atol=atol, equal_nan=True
            )

    return check
