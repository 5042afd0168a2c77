"""What operators ask the C++ kernels for: the kernel, and its arguments beside addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradood.ops import patches
from gradood.ops.addresses import address, address_of_any, require_fit
from gradood.ops.cpp_layouts import (
    Geometry,
    Prepared,
    described,
    layout,
    prepare_conv,
    prepare_linear,
)

#: For kernels that may write one.
_NO_GRADIENT = (0,) * 8


class Request(NamedTuple):
    """What a kernel is asked for, and of which tensors."""

    prepared: Prepared
    x: Tensor
    d: Tensor
    #: Of the operator, beside x and d.
    operands: tuple[Tensor | None, ...] = ()
    bias: bool = True
    passed_on: Tensor | None = None

    def numbers(self) -> tuple[float, ...]:
        """The kernel's numbers but for the addresses of norms, and the number of threads."""
        kernel, of_x, of_d, options, of_to = self.prepared
        channels = self.x.shape[2 if kernel == "layer_norm_backward" else 1]
        operands = [
            0 if t is None else address(t, torch.float32, (channels,)) for t in self.operands
        ]
        passed_on: tuple[int, ...] = ()
        if self.passed_on is not None:
            passed_on = (address_of_any(self.passed_on), *of_to)
        x, d = address_of_any(self.x), address_of_any(self.d)
        return (x, *of_x, d, *of_d, *operands, *options, *passed_on)

    def places(self) -> list[int]:
        """Where in ``numbers`` the addresses of x, d, operands and what is passed on stand."""
        _, of_x, of_d, options, _ = self.prepared
        d, first = 1 + len(of_x), 2 + len(of_x) + len(of_d)
        last = first + len(self.operands)
        return [0, d, *range(first, last), last + len(options)]


def linear(isa: str, x: Tensor, d: Tensor, bias: bool) -> Request:
    """For ``linear_sqnorm``."""
    prepared = prepare_linear(layout(x), layout(d), isa)
    return Request(prepared, x, d, bias=bias)


def conv(
    isa: str,
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bias: bool,
    kind: str | None = None,
) -> Request:
    """For ``conv_sqnorm``."""
    if kind is None and patches.cuts(x, d, kernel_size, stride, padding, dilation, groups):
        return linear(isa, *patches.split(x, d, kernel_size), bias)
    geometry = Geometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), groups)
    prepared = prepare_conv(layout(x), layout(d), geometry, isa, kind)
    return Request(prepared, x, d, bias=bias)


def _rows(kernel: str, x: Tensor, d: Tensor, *options: float, to: Tensor | None = None) -> Prepared:
    """A norm layer's kernel."""
    require_fit(x.shape == d.shape and x.dim() == 3, kernel, x, d)
    passed_on = () if to is None else described(layout(to))
    return Prepared(kernel, described(layout(x)), described(layout(d)), options, passed_on)


def _dense(t: Tensor | None) -> Tensor | None:
    """Of a channel each, as kernels read it."""
    return None if t is None else t.detach().float().contiguous()


def batch_norm(
    isa: str, x: Tensor, d: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> Request:
    """For ``batch_norm_sqnorm``."""
    operands = _dense(mean), _dense(variance), None
    return Request(_rows("batch_norm", x, d, eps, *_NO_GRADIENT), x, d, operands)


def batch_norm_backward(
    isa: str,
    x: Tensor,
    d: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    eps: float,
) -> Request:
    """For ``batch_norm_backward_sqnorm``."""
    samples, channels, positions = d.shape
    if d.stride(1) == 1 and channels > 1:
        passed_on = d.new_empty(samples, positions, channels).transpose(1, 2)
    else:
        passed_on = d.new_empty(d.shape)
    operands = _dense(mean), _dense(variance), _dense(weight)
    prepared = _rows("batch_norm", x, d, eps, to=passed_on)
    return Request(prepared, x, d, operands, passed_on=passed_on)


def layer_norm(isa: str, x: Tensor, d: Tensor, eps: float, rms: bool) -> Request:
    """For ``layer_norm_sqnorm``."""
    return Request(_rows("layer_norm", x, d, eps, int(rms)), x, d)


def layer_norm_backward(
    isa: str, x: Tensor, d: Tensor, scale: Tensor, eps: float, rms: bool
) -> Request:
    """For ``layer_norm_backward_sqnorm``."""
    passed_on = x.new_empty(x.shape)
    prepared = _rows("layer_norm_backward", x, d, eps, int(rms), to=passed_on)
    return Request(prepared, x, d, (_dense(scale),), passed_on=passed_on)


def group_norm(isa: str, x: Tensor, d: Tensor, groups: int, eps: float) -> Request:
    """For ``group_norm_sqnorm``."""
    require_fit(groups > 0 and x.shape[1] % groups == 0, f"group_norm of {groups} groups", x)
    return Request(_rows("group_norm", x, d, groups, eps), x, d)


#: How each operator asks a kernel, given the instruction set and the operator's arguments.
REQUESTS: dict[str, Callable[..., Request]] = {
    "linear_sqnorm": linear,
    "conv_sqnorm": conv,
    "batch_norm_sqnorm": batch_norm,
    "batch_norm_backward_sqnorm": batch_norm_backward,
    "layer_norm_sqnorm": layer_norm,
    "layer_norm_backward_sqnorm": layer_norm_backward,
    "group_norm_sqnorm": group_norm,
}
