"""Convolutions and transposed convolutions in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gradood import ops
from gradood.gradients.axis import SampleAxis
from gradood.gradients.rules.call import (
    Call,
    Operator,
    as_multiplied,
    batch_comes_first,
    tensors,
)
from gradood.ops import reference

#: Elements of an unfolded input held at once.
UNFOLDED = 1 << 24

#: Where PyTorch has one product a sample, and one for all is measured to be faster: up to so many
#: pixels a sample, and from so many multiplications, which outweigh what a node in Python costs.
_FEW_PIXELS, _WORTHWHILE = 25, 1 << 21
#: From so many samples, or with several threads, PyTorch leaves it to oneDNN.
_MANY_SAMPLES = 16


class Geometry(NamedTuple):
    """Sizes of a convolution by spatial dimension; padding is that before the first element."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def prepend(self) -> Geometry:
        """The same convolution over one more leading dimension, which it does not mix."""
        one, zero = (1,), (0,)
        return Geometry(
            one + self.kernel_size,
            one + self.stride,
            zero + self.padding,
            one + self.dilation,
            self.groups,
        )


class ConvCall(Call):
    """``y = x ∗ W + b``: the weight gradient correlates x with d, see ``reference.conv_gradient``.

    Other padding modes reach this operator as an already padded input.
    """

    channels = 1

    transposed: ClassVar[bool] = False
    defers = True

    def __init__(self, x: Tensor, weight: Tensor, bias: Any, geometry: Geometry) -> None:
        self.data = x
        self.operands = tensors(weight=weight, bias=bias)
        self.geometry = geometry

    @classmethod
    def bind(
        cls,
        function: Callable[..., Any],
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Call | str:
        nd = weight.dim() - 2
        if input.dim() != nd + 2:
            return "the input has no batch dimension"
        kernel, dilation = tuple(weight.shape[2:]), _repeat(dilation, nd)
        if padding == "valid":
            padding = 0
        elif padding == "same":
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        geometry = Geometry(kernel, _repeat(stride, nd), _repeat(padding, nd), dilation, groups)
        return cls(input, weight, bias, geometry)

    def refuses(self, axis: SampleAxis) -> str | None:
        return batch_comes_first(axis)

    def operator(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> Operator | None:
        if "weight" not in roles:
            return Operator("bias_sqnorm", (self._arrange(d, d)[1].flatten(2),), ("bias",))
        assert x is not None
        x, d, geometry = self._arrange(as_multiplied(x, d), d)
        return Operator("conv_sqnorm", (x, d, *geometry, "bias" in roles))

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        operator = self.operator(x, d, roles)
        assert operator is not None
        return operator.norms()

    def passes_on(self) -> bool:
        x, weight = self.data, self.operands.get("weight")
        if x is None or weight is None or self.transposed or torch.get_num_threads() > 1:
            return False
        kernel, stride, padding, _, groups = self.geometry
        if prod(kernel) * prod(stride) * groups > 1 or any(padding) or not x.requires_grad:
            return False
        pixels = prod(x.shape[2:])
        plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
        return (
            plain
            and x.is_contiguous()
            and pixels <= _FEW_PIXELS
            and len(x) < _MANY_SAMPLES
            and len(x) * pixels * weight.numel() >= _WORTHWHILE
            and not torch.is_autocast_enabled("cpu")
        )

    def passed_on(self, d: Tensor) -> Tensor:
        weight = self.operands["weight"].detach().flatten(1)
        pixels = d.flatten(2).transpose(1, 2)
        gradient = torch.mm(pixels.reshape(-1, d.shape[1]), weight)
        gradient = gradient.view(*pixels.shape[:2], -1).transpose(1, 2)
        return gradient.contiguous().view(len(d), -1, *d.shape[2:])

    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        if role == "bias":
            return self._arrange(d, d)[1].flatten(2).sum(2)
        assert x is not None
        x, d, geometry = self._arrange(x, d)
        x = x.to(d.dtype)
        x, d = (d, x) if self.transposed else (x, d)
        return reference.conv_gradient(x, d, *geometry).view(
            x.shape[0], *self.operands["weight"].shape
        )

    def gradients(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        if role == "bias" or self.transposed or self.geometry.groups > 1 or self.axis.merged:
            return super().gradients(x, d, role)
        assert x is not None
        # As if they were the output channels of one convolution: its input is unfolded once.
        channels, x = d.flatten(1, 2).flatten(2), x.to(d.dtype)
        if not self._unfolds(x, channels.shape[2]):
            gradient = reference.conv_gradient(x, d.flatten(1, 2), *self.geometry)
            return gradient.view(*d.shape[:3], *gradient.shape[2:])
        _, stride, padding, dilation, _ = self.geometry
        kernel = self.geometry.kernel_size
        width = x.shape[1] * prod(kernel) * channels.shape[2]
        parts = []
        for rows in torch.split(
            torch.arange(len(x), dtype=torch.int64, device="cpu"), max(1, UNFOLDED // width)
        ):
            taps = functional.unfold(x[rows], kernel, dilation, padding, stride)
            parts.append(torch.bmm(channels[rows], taps.transpose(1, 2)))
        return torch.cat(parts).view(*d.shape[:3], x.shape[1], *kernel)

    def _unfolds(self, x: Tensor, positions: int) -> bool:
        """Whether ``unfold`` covers a convolution with so many output positions."""
        kernel, stride, padding, dilation, _ = self.geometry
        if len(kernel) != 2:
            return False
        sizes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
        return positions == prod((n + 2 * p - e * (k - 1) - 1) // s + 1 for n, k, s, p, e in sizes)

    def _arrange(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Geometry]:
        """Turn images merged into the batch, ``[N, m, C, *S]``, into one more spatial dimension."""
        if not self.axis.merged:
            return x, d, self.geometry
        return x.transpose(1, 2), d.transpose(1, 2), self.geometry.prepend()


class TransposedConvCall(ConvCall):
    """The adjoint of a convolution: the same rule with the roles of x and d exchanged."""

    transposed: ClassVar[bool] = True

    def operator(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> Operator | None:
        return None if "weight" in roles else super().operator(x, d, roles)

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        if "weight" not in roles:
            return super().norms(x, d, roles)
        assert x is not None
        x, d, geometry = self._arrange(as_multiplied(x, d), d)
        norms = {"weight": ops.conv_sqnorm(d, x, *geometry, False)[0]}
        if "bias" in roles:
            norms["bias"] = ops.bias_sqnorm(d.flatten(2))
        return norms

    @classmethod
    def bind(  # type: ignore[override]
        cls,
        function: Callable[..., Any],
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Call | str:
        return super().bind(function, input, weight, bias, stride, padding, dilation, groups)


def _repeat(value: Any, count: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * count
    return tuple(value) * count if len(value) == 1 else tuple(value)


RULES: dict[Callable[..., Any], type[Call]] = {
    torch.conv1d: ConvCall,
    torch.conv2d: ConvCall,
    torch.conv3d: ConvCall,
    torch.conv_transpose1d: TransposedConvCall,
    torch.conv_transpose2d: TransposedConvCall,
    torch.conv_transpose3d: TransposedConvCall,
}
