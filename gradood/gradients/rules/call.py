"""What a rule is: one operator call, seen as a function of its parameters and of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gradood import ops
from gradood.gradients.axis import SampleAxis
from gradood.gradients.outputs import Output


class Operator(NamedTuple):
    """One operator of ``ops`` that gives the norms of all roles asked for, and its arguments.

    Apart from views of x and d, these depend on layouts and on the call's other arguments alone.
    """

    name: str
    arguments: tuple[Any, ...]
    #: Whose norms its results are; a gradient that it passes on comes last.
    roles: tuple[str, ...] = ("weight", "bias")

    def results(self) -> tuple[Tensor, ...]:
        """Run it."""
        found = getattr(ops, self.name)(*self.arguments)
        return (found,) if isinstance(found, Tensor) else tuple(found)

    def norms(self) -> dict[str, Tensor]:
        """Run it: ``[N]`` by role."""
        return dict(zip(self.roles, self.results(), strict=True))


class Call(ABC):
    """One call of one operator, in which parameters meet a batch.

    ``operands`` maps a role, such as ``"weight"``, to the tensor that plays it. ``data`` is the
    operator's other input, kept until the backward pass reaches the call; ``needs_data`` names the
    roles whose gradient depends on it.

    ``x`` and ``d`` below are ``data`` and the gradient of the operator's output with the samples
    along dimension 0. Where the batch dimension was ``merged``, it held several entries a sample,
    and those stand in the dimension's place. ``axis`` says where the samples lie in both.
    """

    #: Roles whose repeated uses may be combined by concatenating ``[N, T, …]`` tokens.
    concatenates: ClassVar[frozenset[str]] = frozenset()
    needs_data: ClassVar[frozenset[str]] = frozenset({"weight"})
    #: The dimension of the output that holds the channels.
    channels: ClassVar[int] = -1
    #: Whether the operator brings its input to a common scale.
    normalises: ClassVar[bool] = False
    #: Whether its norms are what operators return, unread: a pass may fill them in at its end.
    defers: ClassVar[bool] = False

    operands: Mapping[str, Tensor]
    data: Tensor | None
    axis: SampleAxis
    #: What the operator returned, where a formula may read it.
    result: Output | None = None

    @property
    def name(self) -> str:
        """The rule's name, for ``explain``."""
        return type(self).__name__.removesuffix("Call").lower()

    @classmethod
    @abstractmethod
    def bind(cls, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call | str:
        """Read an operator's arguments; a string says why the rule does not cover them."""

    def refuses(self, axis: SampleAxis) -> str | None:
        """Say why samples that lie so, in the input and in the output, are not covered."""
        return None

    @abstractmethod
    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        """Squared norms ``[N]`` of the per-sample gradients of the operands in ``roles``."""

    def operator(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> Operator | None:
        """What ``norms`` is, where it is one operator."""
        return None

    def takes_over(self) -> bool:
        """Whether ``backward`` is to replace the operator's own backward pass."""
        return False

    def backward(self, x: Tensor, d: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The norms of all roles, and the gradient of ``data``, from one pass over memory."""
        raise NotImplementedError

    def backward_operator(self, x: Tensor, d: Tensor) -> Operator | None:
        """What ``backward`` is, where it is one operator."""
        return None

    def passes_on(self) -> bool:
        """Whether ``passed_on`` is to replace the operator's own backward pass."""
        return False

    def passed_on(self, d: Tensor) -> Tensor:
        """The gradient of ``data`` alone; ``d`` as autograd gives it, samples where they lie."""
        raise NotImplementedError

    def measures(self) -> bool:
        """Whether ``measured`` is to make the output, where autograd need not see the operator."""
        return False

    def measured(self) -> tuple[Tensor, Tensor]:
        """The output, and its ``channel_sums``, from one pass over memory."""
        raise NotImplementedError

    @abstractmethod
    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        """The per-sample gradients ``[N, *operand.shape]`` of one operand."""

    def gradients(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        """The same for K output gradients ``d`` ``[N, K, …]`` at once: ``[N, K, *shape]``."""
        return torch.stack([self.gradient(x, one, role) for one in d.unbind(1)], 1)

    def gram(self, x: Tensor | None, d: Tensor, role: str) -> Tensor | None:
        """Inner products ``[N, K, K]`` of ``gradients``, or None where those are shorter."""
        return None


def tensors(**operands: Any) -> dict[str, Tensor]:
    """Keep the operands that are tensors: a missing bias is None."""
    return {role: t for role, t in operands.items() if isinstance(t, Tensor)}


def as_multiplied(x: Tensor, d: Tensor) -> Tensor:
    """An operator's input as its product saw it, which has the type of the output.

    Autocast lowers the precision of what it is given, and autograd keeps the lowered input.
    """
    return x if x.dtype == d.dtype else x.to(d.dtype)


def batch_comes_first(axis: SampleAxis) -> str | None:
    """Refuse samples that do not lie along dimension 0, for operators that name it the batch."""
    return "the samples do not lie along the operator's batch dimension" if axis.dim else None
