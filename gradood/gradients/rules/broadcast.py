"""Parameters that meet a batch by broadcasting: position embeddings, class tokens, layer scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradood.gradients.axis import SampleAxis
from gradood.gradients.rules.call import Call
from gradood.gradients.source import is_source


class BroadcastCall(Call):
    """``y = p + …``, ``y = p · x``, ``y = expand(p)``: d, or ``d · x``, summed where p repeats.

    ``x`` has already the shape of the output, so that it is split into samples as d is.
    """

    needs_data: ClassVar[frozenset[str]] = frozenset({"factor"})

    def __init__(
        self,
        operands: dict[str, Tensor],
        output: torch.Size,
        x: Tensor | None = None,
        divisor: Tensor | None = None,
    ) -> None:
        self.operands = operands
        self.output = output
        self.data = None if x is None else x.expand(output)
        self.divisor = divisor

    @property
    def name(self) -> str:
        return "broadcast"

    @classmethod
    def bind(cls, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call | str:
        return _BINDERS[function](*args, **kwargs)

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        return {role: row_sqnorm(self.gradient(x, d, role)) for role in roles}

    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        operand = self.operands[role]
        if role in self.needs_data:
            assert x is not None
            d = d * x.to(d.dtype)
        gradient = self._sum_repeats(d, operand.shape)
        if role == "subtrahend":
            return -gradient
        if self.divisor is not None:
            gradient = gradient / self.divisor.to(gradient.dtype).square().neg()
        return gradient

    def refuses(self, axis: SampleAxis) -> str | None:
        place = axis.dim - len(self.output)
        for operand in self.operands.values():
            if operand.dim() >= -place and operand.shape[place] != 1:
                return "the parameter has a size of its own along the samples"
        return None

    def _sum_repeats(self, d: Tensor, shape: torch.Size) -> Tensor:
        """Sum ``d`` ``[N, …]`` over every dimension in which an operand of ``shape`` has size one.

        Beside the samples, ``d`` has the output's dimensions; of these the batch dimension, where
        the operand has size one, is there only when it was merged.
        """
        padded = [1] * (len(self.output) - len(shape)) + list(shape)
        if not self.axis.merged:
            del padded[self.axis.dim]
        repeated = [i + 1 for i, size in enumerate(padded) if size == 1]
        accumulate = torch.promote_types(d.dtype, torch.float32)
        d = d.sum(repeated, dtype=accumulate) if repeated else d.to(accumulate)
        return d.reshape(d.shape[0], *shape)


class RepeatCall(Call):
    """``y = p.repeat(counts)``: d summed over the copies."""

    needs_data: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, operand: Tensor, counts: Sequence[int]) -> None:
        self.operands = {"term": operand}
        self.data = None
        self.counts = list(counts)

    @classmethod
    def bind(cls, function: Callable[..., Any], operand: Tensor, *counts: Any) -> Call | str:
        return cls(
            operand, counts[0] if len(counts) == 1 and not isinstance(counts[0], int) else counts
        )

    def refuses(self, axis: SampleAxis) -> str | None:
        operand = self.operands["term"]
        place = axis.dim - len(self.counts)
        if operand.dim() >= -place and operand.shape[place] != 1:
            return "the parameter has a size of its own along the samples"
        return "copies are merged into the batch" if axis.merged else None

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        return {"term": row_sqnorm(self.gradient(x, d, "term"))}

    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        shape = self.operands["term"].shape
        padded = [1] * (len(self.counts) - len(shape)) + list(shape)
        sizes = [n for pair in zip(self.counts, padded, strict=True) for n in pair]
        del sizes[2 * self.axis.dim : 2 * self.axis.dim + 2]
        d = d.reshape(d.shape[0], *sizes)
        copies = list(range(1, d.dim(), 2))
        accumulate = torch.promote_types(d.dtype, torch.float32)
        d = d.sum(copies, dtype=accumulate) if copies else d.to(accumulate)
        return d.reshape(d.shape[0], *shape)


def row_sqnorm(gradient: Tensor) -> Tensor:
    """Squared norm of every sample's gradient, ``[N, …]`` to ``[N]``."""
    norm: Tensor = torch.linalg.vector_norm(gradient.reshape(gradient.shape[0], -1), dim=1)
    return norm.square()


def _bind_sum(left: Any, right: Any, *, alpha: float = 1) -> Call | str:
    return _sum(left, right, "term", alpha)


def _bind_difference(left: Any, right: Any, *, alpha: float = 1) -> Call | str:
    return _sum(left, right, "subtrahend", alpha)


def _bind_reversed_difference(right: Any, left: Any) -> Call | str:
    return _sum(left, right, "subtrahend", 1)


def _sum(left: Any, right: Any, right_role: str, alpha: float) -> Call | str:
    if alpha != 1:
        return "sums with alpha have no rule"
    if is_source(left) and is_source(right):
        return "a sum of two parameters that holds samples has no rule"
    operands = {"term": left} if is_source(left) else {right_role: right}
    return BroadcastCall(operands, _common_shape(left, right))


def _bind_product(left: Any, right: Any) -> Call | str:
    if is_source(left) and is_source(right):
        return "a product of two parameters that holds samples has no rule"
    factor, x = (left, right) if is_source(left) else (right, left)
    if not isinstance(x, Tensor):
        return "a parameter times a number holds no samples"
    return BroadcastCall({"factor": factor}, _common_shape(left, right), x.detach())


def _bind_product_in_place(left: Tensor, right: Any) -> Call | str:
    # The operator overwrites its input, which the gradient of the factor needs.
    return _bind_product(left.detach().clone(), right)


def _bind_quotient(left: Any, right: Any) -> Call | str:
    if is_source(left) or not isinstance(left, Tensor):
        return "only a batch divided by a parameter has a rule"
    return BroadcastCall({"factor": right}, _common_shape(left, right), left.detach(), right)


def _bind_addcmul(term: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Call | str:
    shape = _common_shape(term, a, b)
    operands = {"term": term} if is_source(term) else {}
    if not (is_source(a) or is_source(b)):
        return BroadcastCall(operands, shape)
    if is_source(a) and is_source(b):
        return "a product of two parameters that holds samples has no rule"
    factor, x = (a, b) if is_source(a) else (b, a)
    return BroadcastCall({**operands, "factor": factor}, shape, x.detach() * value)


def _bind_expand(operand: Tensor, *sizes: Any) -> Call | str:
    given = list(sizes if isinstance(sizes[0], int) else sizes[0])
    kept = [1] * (len(given) - operand.dim()) + list(operand.shape)
    output = [k if g == -1 else g for g, k in zip(given, kept, strict=True)]
    return BroadcastCall({"term": operand}, torch.Size(output))


def _bind_expand_as(operand: Tensor, other: Tensor) -> Call | str:
    return BroadcastCall({"term": operand}, other.shape)


def _common_shape(*values: Any) -> torch.Size:
    shapes = [v.shape for v in values if isinstance(v, Tensor)]
    return torch.Size(torch.broadcast_shapes(*shapes))


_BINDERS: dict[Callable[..., Any], Callable[..., Call | str]] = {
    **dict.fromkeys(
        (
            torch.add,
            Tensor.add,
            Tensor.__add__,
            Tensor.__radd__,
            Tensor.add_,
            Tensor.__iadd__,
        ),
        _bind_sum,
    ),
    **dict.fromkeys(
        (torch.sub, Tensor.sub, Tensor.__sub__, Tensor.sub_, Tensor.__isub__), _bind_difference
    ),
    Tensor.__rsub__: _bind_reversed_difference,
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _bind_product),
    **dict.fromkeys((Tensor.mul_, Tensor.__imul__), _bind_product_in_place),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), _bind_quotient),
    **dict.fromkeys((torch.addcmul, Tensor.addcmul), _bind_addcmul),
    **dict.fromkeys((Tensor.expand, torch.broadcast_to, Tensor.broadcast_to), _bind_expand),
    Tensor.expand_as: _bind_expand_as,
}

RULES: dict[Callable[..., Any], type[Call]] = {
    **dict.fromkeys(_BINDERS, BroadcastCall),
    Tensor.repeat: RepeatCall,
}
