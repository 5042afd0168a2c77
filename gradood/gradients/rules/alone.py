"""The last rule: any other operator, run again for one sample after the other.

It costs a small operator a sample, where a fallback costs the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradood.errors import first_line
from gradood.gradients.axis import SampleAxis
from gradood.gradients.rules.broadcast import changes_in_place, plain
from gradood.gradients.rules.call import Call
from gradood.gradients.source import is_source
from gradood.ops.row_norms import row_sqnorm

#: What draws random numbers draws others the second time.
_RANDOM = ("dropout", "rand", "rrelu", "bernoulli", "normal", "multinomial", "poisson", "gumbel")


class AloneCall(Call):
    """``y = f(p, x)`` with one batch ``x``: autograd through ``f`` alone, for every ``x_n``."""

    needs_data: ClassVar[frozenset[str]] = frozenset(f"argument {k}" for k in range(1, 9))

    def __init__(
        self, run: Callable[[dict[int, Tensor]], Tensor], operands: Sequence[Tensor], x: Tensor
    ) -> None:
        self._run = run
        self.operands = {f"argument {k}": p for k, p in enumerate(operands, 1)}
        self.data = x.detach()
        self._of_x = id(x)

    @property
    def name(self) -> str:
        return "alone"

    @classmethod
    def bind(cls, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call | str:
        name = getattr(function, "__name__", str(function))
        operands: dict[int, Tensor] = {}
        others: dict[int, Tensor] = {}
        for t in _tensors((args, tuple(kwargs.values()))):
            (operands if is_source(t) else others)[id(t)] = t
        if len(others) != 1 or changes_in_place(function) or len(operands) > len(cls.needs_data):
            return f"no rule for {name}"
        if any(word in name for word in _RANDOM) or "out" in kwargs:
            return f"no rule for {name}"
        (x,) = others.values()
        if torch.is_autocast_enabled(x.device.type):  # it would run in other types
            return f"no rule for {name} under autocast"

        def run(values: dict[int, Tensor]) -> Tensor:
            out: Tensor = function(
                *_replaced(args, values), **{k: _replaced(v, values) for k, v in kwargs.items()}
            )
            return out

        return cls(run, list(operands.values()), x)

    def refuses(self, axis: SampleAxis) -> str | None:
        """Whether a sample alone has another result than in its batch, as the probe's have not."""
        assert self.data is not None
        samples = self.data.shape[axis.dim] // (axis.outer * axis.inner)
        operands = {id(p): plain(p) for p in self.operands.values()}
        try:
            with torch.no_grad():
                out = self._run({**operands, self._of_x: self.data})
                batch = axis.split(out, samples)
                alone = [
                    axis.split(self._run({**operands, self._of_x: x}), 1)[0]
                    for x in self._each(axis.split(self.data, samples), axis)
                ]
            same = all(torch.allclose(a, b, 1e-4, 1e-6) for a, b in zip(batch, alone, strict=True))
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            return f"the operator cannot run on one sample: {first_line(error)}"
        return None if same else "the operator does something else with one sample"

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        rows = [
            {role: row_sqnorm(g[None]) for role, g in zip(roles, found, strict=True)}
            for found in self._pulled(x, d, roles)
        ]
        return {role: torch.cat([row[role] for row in rows]) for role in roles}

    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        return torch.stack([g for (g,) in self._pulled(x, d, [role])])

    def _pulled(
        self, x: Tensor | None, d: Tensor, roles: Sequence[str]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Sample by sample, the gradients of some operands."""
        assert x is not None
        with torch.enable_grad():
            leaves = {role: plain(p).requires_grad_() for role, p in self.operands.items()}
            values = {id(p): leaves[role] for role, p in self.operands.items()}
            chosen = [leaves[role] for role in roles]
            for row, pulled in zip(self._each(x, self.axis), self._each(d, self.axis), strict=True):
                out = self._run({**values, self._of_x: row})
                found = torch.autograd.grad(out, chosen, pulled.to(out), allow_unused=True)
                yield tuple(
                    torch.zeros_like(leaf) if g is None else g
                    for leaf, g in zip(chosen, found, strict=True)
                )

    def _each(self, rows: Tensor, axis: SampleAxis) -> Iterator[Tensor]:
        """Every sample of ``[N, …]`` as a batch of one, in the operator's layout."""
        for row in rows:
            yield row if axis.merged else row.unsqueeze(axis.dim)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _replaced(value: Any, values: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return values[id(value)]
    if type(value) in (list, tuple):
        return type(value)(_replaced(item, values) for item in value)
    return value
