"""Convolutions as the kernels see them: three spatial dimensions, channels innermost.

Neighbouring channels of a pixel then load as one word of 128 bits, whatever the shift of a kernel
tap; planes of one channel would load in 16-bit pieces and need twice the registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Geometry(NamedTuple):
    """A convolution over three spatial dimensions; those it does not have are of size one."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]
    dilation: tuple[int, int, int]
    groups: int

    @classmethod
    def of(
        cls,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Geometry:
        """Fill in the missing leading dimensions."""
        return cls(
            _three(kernel, 1), _three(stride, 1), _three(padding, 0), _three(dilation, 1), groups
        )

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return prod(self.kernel)

    @property
    def constants(self) -> dict[str, int]:
        """What a kernel is compiled for."""
        names = ("K", "S", "P", "D")
        values = (self.kernel, self.stride, self.padding, self.dilation)
        return {
            f"{name}{axis}": value[i]
            for name, value in zip(names, values, strict=True)
            for i, axis in enumerate("DHW")
        }


def channels_innermost(t: Tensor) -> Tensor:
    """``[N, C, *S]`` as a contiguous ``[N, D, H, W, C]``: a view if it lies so already."""
    while t.dim() < 5:
        t = t.unsqueeze(2)
    return t.movedim(1, -1).contiguous()


def both_innermost(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Both with their channels innermost."""
    return channels_innermost(x), channels_innermost(d)


class Rows(NamedTuple):
    """How a kernel finds token t of x: ``t // width · row + t % width · step``, or ``t · step``."""

    sample: int
    row: int
    step: int
    channel: int
    width: int
    #: Whether there are several rows.
    several: bool

    @classmethod
    def of(cls, x: Tensor) -> Rows:
        """Of ``x`` ``[N, T, C]`` or ``[N, rows, width, C]``."""
        if x.dim() == 4:
            sample, row, step, channel = x.stride()
            return cls(sample, row, step, channel, x.shape[2], True)
        sample, step, channel = x.stride()
        return cls(sample, 0, step, channel, 1, False)


@triton.jit
def token(t, width, row, step, ROWS: tl.constexpr):
    """Where token ``t`` of a sample lies, see ``Rows``."""
    if ROWS:
        return t // width * row + t % width * step
    return t * step


def _three(sizes: Sequence[int], fill: int) -> tuple[int, int, int]:
    a, b, c = (fill,) * (3 - len(sizes)) + tuple(sizes)
    return a, b, c
