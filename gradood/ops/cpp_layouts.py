"""Tensors and calls as the C++ kernels take them: numbers, found once for one memory layout."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

from torch import Tensor

from gradood.ops import choice
from gradood.ops.addresses import DTYPES, require_fit, windows_fit


class Layout(NamedTuple):
    """A tensor's memory layout as ``_cpu`` takes it."""

    dtype: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def transpose(self) -> Layout:
        """Tokens ``[N, T, q]`` as pixels ``[N, q, T]``."""
        return self._replace(
            size=tuple(self.size[i] for i in (0, 2, 1)),
            stride=tuple(self.stride[i] for i in (0, 2, 1)),
        )

    def spread(self) -> tuple[int, ...]:
        """The numbers for a tensor of three spatial dimensions, the first of which are one."""
        missing = 5 - len(self.size)
        size = (*self.size[:2], *(1,) * missing, *self.size[2:])
        step = self.size[2] * self.stride[2]
        return (self.dtype, *size, *self.stride[:2], *(step,) * missing, *self.stride[2:])


class Geometry(NamedTuple):
    """Sizes of a convolution, by spatial dimension."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def spread(self) -> tuple[int, ...]:
        """The numbers for three spatial dimensions."""
        missing = 3 - len(self.kernel_size)
        sizes = (self.kernel_size, self.stride, self.padding, self.dilation)
        filled = zip(sizes, (1, 1, 0, 1), strict=True)
        return (*(n for s, one in filled for n in ((one,) * missing + s)), self.groups)


class Prepared(NamedTuple):
    """A kernel, and its arguments beside addresses: found once for tensors of one layout."""

    kernel: str
    x: tuple[int, ...]
    d: tuple[int, ...]
    options: tuple[float, ...] = ()
    #: The layout of the gradient that the kernel passes on, if it does.
    to: tuple[int, ...] = ()


@lru_cache(4096)
def prepare_linear(x: Layout, d: Layout, instruction_set: str) -> Prepared:
    """For ``linear_sqnorm``: the kernel that the counts of operations choose."""
    costs = choice.CPP[instruction_set]
    fits = len(x.size) == len(d.size) == 3 and x.size[:2] == d.size[:2]
    require_fit(fits, "linear_sqnorm", x.size, d.size)
    kind = choice.linear(x.size[1], x.size[2], d.size[2], costs)
    if kind == "outer":
        return Prepared(kind, described(x), described(d))
    pointwise = Geometry((1,), (1,), (0,), (1,), 1)
    return Prepared(kind, x.transpose().spread(), d.transpose().spread(), pointwise.spread())


@lru_cache(4096)
def prepare_conv(
    x: Layout, d: Layout, geometry: Geometry, instruction_set: str, kind: str | None
) -> Prepared:
    """For ``conv_sqnorm``: the kernel that the counts of operations choose, or that of ``kind``."""
    costs = choice.CPP[instruction_set]
    kernel_size, stride, padding, dilation, groups = geometry
    fits = len(x.size) == len(d.size) > 2 and x.size[0] == d.size[0] and groups > 0
    fits = fits and x.size[1] % groups == 0 and d.size[1] % groups == 0
    fits = fits and all(len(sizes) == len(x.size) - 2 for sizes in geometry[:4])
    fits = fits and min(*kernel_size, *stride, *dilation) > 0 and min(padding) >= 0
    fits = fits and windows_fit(x.size[2:], d.size[2:], *geometry[:4])
    require_fit(fits, "conv_sqnorm", x.size, d.size, *geometry[:4], (groups,))
    # What moves nothing may be any number: tables are as long as the stride.
    stride = tuple(1 if n == 1 else s for n, s in zip(d.size[2:], stride, strict=True))
    dilation = tuple(1 if k == 1 else s for k, s in zip(kernel_size, dilation, strict=True))
    geometry = Geometry(kernel_size, stride, padding, dilation, groups)
    if kind is None:
        sizes = (x.size[1:], d.size[1:], kernel_size, stride, padding)
        kind = choice.conv(*sizes, groups, costs, dilation)
    if kind == "pointwise":
        kind = choice.linear(prod(d.size[2:]), x.size[1], d.size[1], costs, pixels=True)
    kernel = {"shift_gram": "gram", "outer": "direct"}.get(kind, kind)
    return Prepared(kernel, x.spread(), d.spread(), geometry.spread())


def layout(t: Tensor) -> Layout:
    """That of a strided tensor."""
    return Layout(DTYPES[t.dtype], t.shape, t.stride())


def described(known: Layout) -> tuple[int, ...]:
    """A layout as numbers."""
    return (known.dtype, *known.size, *known.stride)
