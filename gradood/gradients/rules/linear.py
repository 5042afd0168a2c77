"""A batch times a matrix: ``linear``, ``matmul``, ``mm``, ``addmm``; contractions if it is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from gradood.gradients.axis import SampleAxis
from gradood.gradients.rules.call import Call, Operator, as_multiplied, tensors
from gradood.gradients.rules.contraction import ContractionCall
from gradood.gradients.source import is_source


class LinearCall(Call):
    """``y = x Wᵀ + b``: the weight gradient is ``Σ_t d_t x_tᵀ``, the bias gradient ``Σ_t d_t``."""

    concatenates: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})
    #: Also those of calls that are no product of tokens with one matrix.
    needs_data: ClassVar[frozenset[str]] = frozenset({"weight", *ContractionCall.needs_data})
    transposed: ClassVar[bool] = False
    defers = True

    def __init__(self, x: Tensor, weight: Any, bias: Any) -> None:
        self.data = x
        self.operands = tensors(weight=weight, bias=bias)

    @classmethod
    def bind(
        cls, function: Callable[..., Any], input: Tensor, weight: Any, bias: Any = None
    ) -> Call | str:
        if input.dim() < 2:
            return "the input has no batch dimension"
        if weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            return ContractionCall.bind(function, input, weight, bias)
        return cls(input, weight, bias)

    def refuses(self, axis: SampleAxis) -> str | None:
        assert self.data is not None
        if axis.dim == self.data.dim() - 1:
            return "the samples lie along the features"
        return None

    def operator(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> Operator:
        d = tokens(d)
        if "weight" not in roles:
            return Operator("bias_sqnorm", (d.transpose(1, 2),), ("bias",))
        assert x is not None
        return Operator("linear_sqnorm", (as_multiplied(tokens(x), d), d, "bias" in roles))

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        return self.operator(x, d, roles).norms()

    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        d = tokens(d)
        if role == "bias":
            return d.sum(1)
        assert x is not None
        gradient = torch.bmm(d.transpose(1, 2), tokens(x).to(d.dtype))
        return gradient.transpose(1, 2) if self.transposed else gradient

    def gram(self, x: Tensor | None, d: Tensor, role: str) -> Tensor | None:
        # Σ_tu ⟨x_t, x_u⟩ ⟨d_kt, d_lu⟩: the first factor is the same for all k, l.
        d = d.unsqueeze(2) if d.dim() == 3 else d.flatten(2, -2)  # [N, K, T, P]
        rows, width = d.shape[2:]
        if role == "bias" or x is None:
            return None
        x = tokens(x).to(d.dtype)
        if rows * (width + x.shape[2]) > width * x.shape[2]:
            return None
        mixed = torch.bmm(torch.bmm(x, x.transpose(1, 2)), d.transpose(1, 2).flatten(2))
        mixed = mixed.unflatten(2, (-1, width)).transpose(1, 2)
        return torch.bmm(mixed.flatten(2), d.flatten(2).transpose(1, 2))


class MatmulCall(LinearCall):
    """``y = x W``, and ``addmm``: ``y = b + x W``. The weight gradient is ``Σ_t x_t d_tᵀ``."""

    transposed: ClassVar[bool] = True

    @classmethod
    def bind(cls, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call | str:
        """A batch times a parameter that is a matrix; any other product is a contraction."""
        if not kwargs and len(args) in (2, 3):
            *bias, x, weight = args
            vector = not bias or bias[0].shape == weight.shape[-1:]
            matrix = weight.dim() == 2 and x.dim() >= 2 and not is_source(x)
            if vector and matrix and function is not Tensor.__rmatmul__:
                return cls(x, weight, *(bias or [None]))
        return ContractionCall.bind(function, *args, **kwargs)


def tokens(t: Tensor) -> Tensor:
    """View ``[N, …, features]`` as ``[N, T, features]``."""
    return t.unsqueeze(1) if t.dim() == 2 else t.flatten(1, -2)


_PRODUCTS = (
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.mm,
    Tensor.mm,
    Tensor.__rmatmul__,
)
RULES: dict[Callable[..., Any], type[Call]] = {
    functional.linear: LinearCall,
    **dict.fromkeys((*_PRODUCTS, torch.addmm, Tensor.addmm), MatmulCall),
}
