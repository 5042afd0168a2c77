"""The kernel that serves a step of a plan, known from an earlier pass with tensors alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradood.gradients.memory import memory
from gradood.gradients.rules import Call
from gradood.gradients.step import Step
from gradood.ops.dispatch import prepare


class Layout(NamedTuple):
    """What a kernel or a rule can tell of a tensor without its numbers."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, t: Tensor) -> Layout:
        """That of a strided tensor."""
        return cls(t.dtype, t.shape, t.stride())

    def fits(self, t: Tensor) -> bool:
        """Whether a tensor is laid out like that, in memory of the processor."""
        dtype, shape, stride = self
        return (
            t.dtype is dtype
            and t.is_cpu
            and t.layout is torch.strided
            and t.shape == shape
            and t.stride() == stride
            and not t.is_neg()
        )


def is_plain(t: Tensor) -> bool:
    """Whether a tensor is its numbers in memory of the processor, as its strides say."""
    return t.is_cpu and t.layout is torch.strided and not t.is_neg()


class Rows:
    """Norms ``[rows, N]`` of one backward pass, which kernels fill row by row."""

    def __init__(self, rows: int, samples: int) -> None:
        self._values = torch.empty((rows, samples), dtype=torch.float32, device="cpu")
        self._first, self._width = self._values.data_ptr(), 4 * samples
        #: Parameters, each with a row that was filled for it.
        self.filled: list[tuple[str, int]] = []

    def address(self, number: int) -> int:
        """Of a row."""
        return self._first + self._width * number

    def norms(self) -> list[tuple[str, Tensor]]:
        """Parameters and norms ``[N]``."""
        rows = self._values.unbind(0) if self.filled else ()
        return [(name, rows[number]) for name, number in self.filled]


@dataclass(frozen=True)
class Kernel:
    """One kernel that computes what a rule asks for, and reads its tensors where they are."""

    #: What runs it: of the arguments of the call, x, d and the gradient that is passed on.
    repeated: Any
    #: Numbers of the rows that it fills: norms of the weight, and of the bias unless that is None.
    weight: int
    bias: int | None
    #: Parameters, each with the row of its norms.
    filled: tuple[tuple[str, int], ...]
    #: The gradient that it passes on.
    passed_on: Layout | None

    @classmethod
    def of(
        cls,
        step: Step,
        call: Call,
        x: Tensor,
        d: Tensor,
        called: list[Any],
        samples: int,
        taken: bool,
        take_row: Callable[[], int],
    ) -> Kernel | None:
        """The kernel for tensors alike; None where there is not one that does it alone.

        ``called`` are the arguments of the call, ``taken`` says that its backward pass is replaced.
        """
        split = step.axis.split(x, samples), step.axis.split(d, samples)
        operator = call.backward_operator(*split) if taken else call.operator(*split, step.roles)
        found = None if operator is None else prepare(operator.name, *operator.arguments)
        if operator is None or found is None:
            return None
        request, repeat = found
        operands = [None if t is None else _given(t, called) for t in request.operands]
        unknown = operands.count(None) > request.operands.count(None)
        if unknown or not (_same(request.x, x) and _same(request.d, d)):
            return None
        given, gradient = [(len(called), x), (len(called) + 1, d), *operands], None
        if taken:
            gradient = request.passed_on.view(x.shape)
            given.append((len(called) + 2, gradient))
        rows = [take_row() for _ in range(1 + request.bias)]
        row = dict(zip(operator.roles, rows, strict=False))
        return cls(
            repeated=repeat(request, given),
            weight=rows[0],
            bias=rows[1] if request.bias else None,
            filled=tuple((use.parameter, row[use.role]) for use in step.added),
            passed_on=None if gradient is None else Layout.of(gradient),
        )

    def run(
        self, x: Tensor, d: Tensor, called: list[Any], rows: Rows
    ) -> tuple[Tensor | None] | None:
        """Fill its rows, and return the gradient that it passes on; None if one lies otherwise."""
        gradient = None
        if self.passed_on is not None:
            dtype, shape, stride = self.passed_on
            gradient = torch.empty_strided(shape, stride, dtype=dtype, device="cpu")
        bias = 0 if self.bias is None else rows.address(self.bias)
        tensors = (*called, x, d, gradient)
        if not self.repeated.run(tensors, rows.address(self.weight), bias):
            return None
        rows.filled += self.filled
        return (gradient,)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors begin at the same number of the same memory."""
    return a.dtype == b.dtype and memory(a) == memory(b) and a.data_ptr() == b.data_ptr()


def _given(wanted: Tensor, called: list[Any]) -> tuple[int, Tensor] | None:
    """Which argument of a call an operand is."""
    for place, value in enumerate(called):
        if isinstance(value, Tensor) and _same(wanted, value):
            dense = value.numel() == wanted.numel() and value.is_contiguous()
            return (place, value) if dense else None
    return None
