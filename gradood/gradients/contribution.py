"""One use of a parameter whose gradient is added to those of others before it is squared."""

from __future__ import annotations

from torch import Tensor

from gradood.gradients.rules import Call
from gradood.gradients.source import Source


class Contribution:
    """One use of a parameter, kept until its other uses are known: inputs, or the gradient."""

    def __init__(self, call: Call, role: str, x: Tensor | None, d: Tensor, source: Source) -> None:
        self.call, self.role, self.x, self.d, self.source = call, role, x, d, source
        operand = call.operands[role]
        kept = d.numel() + (0 if x is None else x.numel())
        self.ready: Tensor | None = None
        if d.shape[0] * operand.numel() <= kept and role not in call.concatenates:
            self.ready = call.gradient(x, d, role)
            self.x = None
            self.d = d.new_empty(0)

    def gradient(self, name: str, chunk: slice) -> Tensor:
        """Gradients of the parameter ``name`` for some samples."""
        if self.ready is not None:
            gradient = self.ready[chunk]
        else:
            x = None if self.x is None else self.x[chunk]
            gradient = self.call.gradient(x, self.d[chunk], self.role)
        return self.source.pull_back(gradient, name)
