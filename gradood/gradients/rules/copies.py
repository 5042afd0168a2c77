"""Operators that copy elements about: repetition, indexing, writing a parameter into a batch.

What such an operator does to elements does not depend on their values. So it runs once more, on the
numbers of the parameters' elements, and tells from which element each element of its output came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradood import ops
from gradood.errors import first_line
from gradood.gradients.rules.broadcast import changes_in_place
from gradood.gradients.rules.call import Call
from gradood.gradients.source import is_source


def written(target: Tensor, index: Any, value: Any) -> Tensor:
    """``target[index] = value``, and the target."""
    target[index] = value
    return target


written.__name__ = "__setitem__"


class CopyCall(Call):
    """``y_t = p_{i(t)}``, or something else: the gradient of ``p_v`` is ``Σ_{t: i(t) = v} d_t``.

    ``data`` is ``i``, counted from one through all operands; zero stands for anything else.
    """

    needs_data: ClassVar[frozenset[str]] = frozenset({f"source {k}" for k in range(1, 9)})

    def __init__(self, operands: Sequence[Tensor], places: Tensor) -> None:
        self.operands = {f"source {k}": p for k, p in enumerate(operands, 1)}
        self.data = places
        self._first = {}
        first = 1
        for role, p in self.operands.items():
            self._first[role] = first
            first += p.numel()

    @property
    def name(self) -> str:
        return "copy"

    @classmethod
    def bind(cls, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call | str:
        name = function.__name__
        if (changes_in_place(function) or function is written) and args[0]._is_view():
            return f"{name} changes a view in place"
        operands: dict[int, Tensor] = {}
        numbers: dict[int, Tensor] = {}
        first = 1

        def number(value: Any) -> Any:
            nonlocal first
            if type(value) in (list, tuple):
                return type(value)(map(number, value))
            if not isinstance(value, Tensor):
                return value
            if not is_source(value):
                return torch.zeros_like(value, dtype=torch.int64) if _copied(value) else value
            if id(value) not in operands:
                operands[id(value)] = value
                count = torch.arange(
                    first, first + value.numel(), device=value.device, dtype=torch.int64
                )
                numbers[id(value)] = count.view(value.shape)
                first += value.numel()
            return numbers[id(value)]

        if any(isinstance(value, float) for value in (*args, *kwargs.values())):
            return f"{name} with a number to write has no rule"
        try:
            places = function(*map(number, args), **{k: number(v) for k, v in kwargs.items()})
        except (RuntimeError, IndexError) as error:
            return f"{name} does not copy: {first_line(error)}"
        if not isinstance(places, Tensor) or len(operands) > len(cls.needs_data):
            return f"{name} returns no single tensor"
        return cls(list(operands.values()), places)

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        return {role: self._norm(x, d, role) for role in roles}

    def _norm(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        place, d = self._arrange(x, d, role)
        norm: Tensor = ops.embedding_sqnorm(place, d[..., None], 0)
        return norm

    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        place, d = self._arrange(x, d, role)
        operand = self.operands[role]
        d = d.to(torch.promote_types(d.dtype, torch.float32))
        total = d.new_zeros(len(d), operand.numel() + 1).scatter_add_(1, place, d)
        return total[:, 1:].reshape(len(d), *operand.shape)

    def _arrange(self, x: Tensor | None, d: Tensor, role: str) -> tuple[Tensor, Tensor]:
        """Places ``[N, T]`` within the operand, from one, and d ``[N, T]``."""
        assert x is not None
        place = x.reshape(len(x), -1) - (self._first[role] - 1)
        inside = (place > 0) & (place <= self.operands[role].numel())
        return place.where(inside, 0), d.reshape(len(d), -1)


def _copied(value: Tensor) -> bool:
    """Whether a tensor holds values, not places."""
    return value.is_floating_point() or value.is_complex()


_NAMES = (
    "repeat", "tile", "repeat_interleave", "__getitem__", "select", "narrow", "index_select",
    "gather", "take", "take_along_dim", "roll", "flip", "cat", "concat", "concatenate", "stack",
    "hstack", "vstack", "dstack", "column_stack", "row_stack", "index_put", "index_put_",
    "index_copy", "index_copy_", "masked_scatter", "masked_scatter_", "masked_select", "scatter",
    "scatter_", "select_scatter", "slice_scatter", "diagonal_scatter", "copy_", "expand_copy",
    "unsqueeze", "squeeze", "view", "reshape", "permute", "transpose", "unfold", "diag_embed",
)  # fmt: skip

RULES: dict[Callable[..., Any], type[Call]] = {
    written: CopyCall,
    **{
        getattr(owner, name): CopyCall
        for name in _NAMES
        for owner in (torch, Tensor)
        if hasattr(owner, name)
    },
}
