"""Matrix products: ``linear``, ``matmul``, ``mm``, ``addmm`` with a two-dimensional weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from gradood import ops
from gradood.gradients.axis import SampleAxis
from gradood.gradients.rules.call import Call, tensors


class LinearCall(Call):
    """``y = x Wᵀ + b``: the weight gradient is ``Σ_t d_t x_tᵀ``, the bias gradient ``Σ_t d_t``."""

    concatenates: ClassVar[bool] = True
    transposed: ClassVar[bool] = False

    def __init__(self, x: Tensor, weight: Any, bias: Any) -> None:
        self.data = x
        self.operands = tensors(weight=weight, bias=bias)

    @classmethod
    def bind(
        cls, function: Callable[..., Any], input: Tensor, weight: Any, bias: Any = None
    ) -> Call | str:
        if input.dim() < 2:
            return "the input has no batch dimension"
        if weight.dim() != 2:
            return "linear with a weight that is not a matrix has no rule"
        return cls(input, weight, bias)

    def refuses(self, axis: SampleAxis) -> str | None:
        assert self.data is not None
        if axis.dim == self.data.dim() - 1:
            return "the samples lie along the features"
        return None

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        d = tokens(d)
        if "weight" not in roles:
            return {"bias": ops.bias_sqnorm(d.transpose(1, 2))}
        assert x is not None
        weight, bias = ops.linear_sqnorm(tokens(x), d, "bias" in roles)
        return {"weight": weight, "bias": bias}

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
        if function in _ADDMM:
            return cls._bind_addmm(*args, **kwargs)
        if kwargs or len(args) != 2:
            return "matmul was called with other arguments than two tensors"
        x, weight = args
        if weight.dim() != 2 or x.dim() < 2:
            return "only products of a batch with a two-dimensional weight have a rule"
        return cls(x, weight, None)

    @classmethod
    def _bind_addmm(
        cls, input: Any, mat1: Tensor, mat2: Any, *, beta: float = 1, alpha: float = 1
    ) -> Call | str:
        if beta != 1 or alpha != 1:
            return "addmm with beta or alpha has no rule"
        if input.dim() != 1:
            return "addmm with a bias that is not a vector has no rule"
        return cls(mat1, mat2, input)


def tokens(t: Tensor) -> Tensor:
    """View ``[N, …, features]`` as ``[N, T, features]``."""
    return t.unsqueeze(1) if t.dim() == 2 else t.flatten(1, -2)


_ADDMM = (torch.addmm, Tensor.addmm)
RULES: dict[Callable[..., Any], type[Call]] = {
    functional.linear: LinearCall,
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, *_ADDMM), MatmulCall
    ),
}
