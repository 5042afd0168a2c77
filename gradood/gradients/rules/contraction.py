"""Products of any arrangement: ``einsum``, weights on the left or in batches, vectors, outer ones.

Every dimension of parameter, batch and output has a label; what both factors have and the output
lacks is summed over. Labels beside the samples' fall into four groups: in both factors and the
output (B), in the batch and the output (T), in the parameter and the output (P), and summed over
(Q). With x as ``[N, B, T, Q]`` and d as ``[N, B, T, P]``, the gradient is ``Σ_t d_t x_tᵀ`` for
every b: that of a linear operator.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from gradood import ops
from gradood.gradients.axis import SampleAxis
from gradood.gradients.rules.broadcast import BroadcastCall, plain, sum_repeats
from gradood.gradients.rules.call import Call
from gradood.gradients.source import is_source
from gradood.ops.row_norms import row_sqnorm

Labels = Sequence[Hashable]


class ContractionCall(Call):
    """``y = α Σ p x + β b``, summed over all labels that ``y`` lacks.

    ``data`` is x in the layout of the output, with size one where x lacks a label, followed by the
    labels that are summed over, in the order that they have in the parameter.
    """

    needs_data: ClassVar[frozenset[str]] = frozenset({"operand"})

    def __init__(self, p: Tensor, labels: Labels, x: Tensor, of_x: Labels, of_y: Labels) -> None:
        self.operands = {"operand": p}
        # A label of size one is summed over like any that is not there.
        self._labels = [label for label, size in zip(labels, p.shape, strict=True) if size > 1]
        self._sizes = dict(zip(labels, p.shape, strict=True))
        self._of_y = list(of_y)
        self._beta = 1.0
        summed = [label for label in self._labels if label not in self._of_y]
        lost = [i for i, lab in enumerate(of_x) if lab not in self._of_y and lab not in summed]
        x = plain(x)
        x = x.sum(lost) if lost else x
        kept = [label for label in of_x if label in self._of_y or label in summed]
        missing = [label for label in (*self._of_y, *summed) if label not in kept]
        x = x.reshape(*x.shape, *[1] * len(missing))
        order = [(*kept, *missing).index(label) for label in (*self._of_y, *summed)]
        x = x.permute(order)
        sizes = [-1] * len(self._of_y) + [self._sizes[label] for label in summed]
        self.data = x.expand(sizes)

    @property
    def name(self) -> str:
        return "contraction"

    @classmethod
    def bind(cls, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call | str:
        try:
            return _BINDERS[function](*args, **kwargs)
        except _Unlabelled as reason:
            return str(reason)

    def plus(self, added: Any, alpha: float, beta: float) -> ContractionCall:
        """``alpha`` times the product plus ``beta`` times a tensor, perhaps a parameter."""
        if alpha != 1 and self.data is not None:
            self.data = self.data * alpha
        if is_source(added):
            self.operands = {**self.operands, "added": added}
        self._beta = beta
        return self

    def refuses(self, axis: SampleAxis) -> str | None:
        if self._of_y[axis.dim] in self._labels:
            return "the parameter has a size of its own along the samples"
        added = self.operands.get("added")
        place = axis.dim - len(self._of_y)
        if added is not None and added.dim() >= -place and added.shape[place] != 1:
            return "the parameter has a size of its own along the samples"
        return None

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        found = {}
        if "added" in roles:
            found["added"] = row_sqnorm(self.gradient(None, d, "added"))
        if "operand" in roles:
            assert x is not None
            x, d, _ = self._arrange(x, d)
            norm, _ = ops.linear_sqnorm(x.flatten(0, 1), d.flatten(0, 1), False)
            found["operand"] = norm.view(x.shape[:2]).sum(1)
        return found

    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        operand = self.operands[role]
        if role == "added":
            total = sum_repeats(d, operand.shape, len(self._of_y), self.axis)
            return total if self._beta == 1 else total * self._beta
        assert x is not None
        x, d, order = self._arrange(x, d)
        gradient = d.transpose(2, 3) @ x.to(d.dtype)  # [N, B, P, Q]
        gradient = gradient.reshape(len(d), *(self._sizes[label] for label in order))
        places = [1 + order.index(label) for label in self._labels]
        return gradient.permute(0, *places).reshape(len(d), *operand.shape)

    def _arrange(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor, list[Hashable]]:
        """``[N, B, T, Q]`` of x, ``[N, B, T, P]``, and the parameter's labels in that order."""
        outputs = list(self._of_y)
        if self.axis.merged:
            outputs[self.axis.dim] = None  # what the samples share their dimension with
        else:
            del outputs[self.axis.dim]
        both: list[int] = []
        rows: list[int] = []
        own: list[int] = []
        for i, label in enumerate(outputs, 1):
            if label not in self._labels:
                rows.append(i)
            else:
                (both if x.shape[i] > 1 else own).append(i)
        sizes = [prod(d.shape[i] for i in group) for group in (both, rows, own)]
        d_first = d.permute(0, *both, *rows, *own).reshape(len(d), *sizes)
        summed = range(d.dim(), x.dim())
        x_first = x.permute(0, *both, *rows, *own, *summed).reshape(len(x), *sizes[:2], -1)
        order = [outputs[i - 1] for i in (*both, *own)]
        return x_first, d_first, order + [lab for lab in self._labels if lab not in self._of_y]


class _Unlabelled(Exception):
    """Why no labels can be given."""


def contract(a: Tensor, of_a: Labels, b: Tensor, of_b: Labels, of_y: Labels) -> ContractionCall:
    """The call that multiplies a parameter and a batch, in either order."""
    if is_source(a) and is_source(b):
        raise _Unlabelled("a product of two parameters that holds samples has no rule")
    if a.layout is not torch.strided or b.layout is not torch.strided:
        raise _Unlabelled("products of sparse tensors have no rule")
    if len(set(of_a)) < len(of_a) or len(set(of_b)) < len(of_b):
        raise _Unlabelled("an einsum that takes a diagonal has no rule")
    return (
        ContractionCall(a, of_a, b, of_b, of_y)
        if is_source(a)
        else ContractionCall(b, of_b, a, of_a, of_y)
    )


def matmul(a: Tensor, b: Tensor) -> ContractionCall:
    """``a @ b`` in any number of dimensions."""
    of_a: list[Hashable] = [*range(2 - a.dim(), 0), "i", "k"][-a.dim() :] if a.dim() > 1 else ["k"]
    of_b: list[Hashable] = [*range(2 - b.dim(), 0), "k", "j"] if b.dim() > 1 else ["k"]
    batch = range(2 - max(a.dim(), b.dim(), 2), 0)
    of_y = [*batch, *(["i"] if a.dim() > 1 else []), *(["j"] if b.dim() > 1 else [])]
    return contract(a, of_a, b, of_b, of_y)


def linear(input: Tensor, weight: Tensor, bias: Any = None) -> ContractionCall:
    """``x Wᵀ + b`` with a weight that may be a vector, and any bias."""
    rows = list(range(1 - input.dim(), 0))
    of_w = ["j", "k"] if weight.dim() > 1 else ["k"]
    return contract(input, [*rows, "k"], weight, of_w, [*rows, *of_w[:-1]]).plus(bias, 1, 1)


def _bind_matmul(a: Tensor, b: Tensor) -> Call:
    return matmul(a, b)


def _bind_added(added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Call:
    if not (is_source(a) or is_source(b)):
        output = torch.Size([*a.shape[:-1], *b.shape[-1:]]) if b.dim() > 1 else a.shape[:-1]
        return BroadcastCall({"term": added}, output, slopes={"term": beta})
    return matmul(a, b).plus(added, alpha, beta)


def _bind_addbmm(added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Call:
    if not (is_source(a) or is_source(b)):
        output = torch.Size([a.shape[1], b.shape[2]])
        return BroadcastCall({"term": added}, output, slopes={"term": beta})
    return contract(a, "bik", b, "bkj", "ij").plus(added, alpha, beta)


def _bind_addr(added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Call:
    if not (is_source(a) or is_source(b)):
        return BroadcastCall({"term": added}, torch.Size([len(a), len(b)]), slopes={"term": beta})
    return contract(a, "i", b, "j", "ij").plus(added, alpha, beta)


def _bind_outer(a: Tensor, b: Tensor) -> Call:
    return contract(a, "i", b, "j", "ij")


def _bind_inner(a: Tensor, b: Tensor) -> Call:
    of_a = [("a", i) for i in range(a.dim() - 1)]
    of_b = [("b", i) for i in range(b.dim() - 1)]
    return contract(a, [*of_a, "k"], b, [*of_b, "k"], [*of_a, *of_b])


def _bind_tensordot(a: Tensor, b: Tensor, dims: Any = 2, out: Any = None) -> Call:
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        dims = list(range(a.dim() - dims, a.dim())), list(range(dims))
    summed = [[dims] if isinstance(dims, int) else list(dims) for dims in dims]
    of_a: list[Hashable] = [("a", i) for i in range(a.dim())]
    of_b: list[Hashable] = [("b", i) for i in range(b.dim())]
    for i, j in zip(*summed, strict=True):
        of_b[j] = of_a[i]
    of_y = [lab for lab in of_a if lab not in of_b] + [lab for lab in of_b if lab not in of_a]
    return contract(a, of_a, b, of_b, of_y)


def _bind_einsum(equation: Any, *operands: Any) -> Call:
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        raise _Unlabelled("only an einsum of two tensors with an equation has a rule")
    a, b = operands
    given, arrow, of_y = equation.replace(" ", "").partition("->")
    of_a, of_b = given.split(",")
    if not arrow:
        every = of_a + of_b
        of_y = "..." + "".join(sorted({c for c in every if every.count(c) == 1 and c != "."}))
    terms = ((a, of_a), (b, of_b))
    wide = max((t.dim() - len(term) + 3 for t, term in terms if "..." in term), default=0)
    return contract(
        a, _spelt(of_a, a.dim()), b, _spelt(of_b, b.dim()), _spelt(of_y, len(of_y) - 3 + wide)
    )


def _spelt(letters: str, dims: int) -> list[Hashable]:
    """Labels of an einsum term; those of an ellipsis are numbered from the right."""
    before, ellipsis, after = letters.partition("...")
    if not ellipsis:
        return list(letters)
    return [*before, *range(len(before) + len(after) - dims, 0), *after]


_BINDERS: dict[Callable[..., Any], Callable[..., Call]] = {
    **dict.fromkeys(
        (
            *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.linalg.matmul),
            *(torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.mv, Tensor.mv),
        ),
        _bind_matmul,
    ),
    Tensor.__rmatmul__: lambda b, a: matmul(a, b),
    **dict.fromkeys(
        (
            *(torch.addmm, Tensor.addmm, torch.addmv, Tensor.addmv),
            *(torch.baddbmm, Tensor.baddbmm),
        ),
        _bind_added,
    ),
    **dict.fromkeys((torch.addbmm, Tensor.addbmm), _bind_addbmm),
    **dict.fromkeys((torch.addr, Tensor.addr), _bind_addr),
    **dict.fromkeys((torch.outer, Tensor.outer, torch.ger, Tensor.ger), _bind_outer),
    **dict.fromkeys((torch.inner, Tensor.inner), _bind_inner),
    torch.tensordot: _bind_tensordot,
    torch.einsum: _bind_einsum,
    functional.linear: linear,
}

RULES: dict[Callable[..., Any], type[Call]] = dict.fromkeys(_BINDERS, ContractionCall)
