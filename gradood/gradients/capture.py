"""Modes that see every operator of a forward pass, and which parameters its arguments are.

A ``TorchFunctionMode`` sees operators, not modules, so it makes no difference which module a
parameter is used in, or how often. Parameters are replaced by plain tensors on the way into an
operator: no weight gradient is computed, and nothing is recorded before the first one selected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from gradood.gradients.arguments import tensors_in
from gradood.gradients.expansion import expansion
from gradood.gradients.source import Source, derived_source, is_source, plain_value

Function = Callable[..., Any]

#: Operators that copy or cast, element for element.
_ISOMETRIC: frozenset[Any] = frozenset(
    {Tensor.clone, torch.clone, Tensor.contiguous, Tensor.to, Tensor.type_as, Tensor.type}
    | {Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16}
)

#: Queries that return metadata, not tensors.
_QUERIES: frozenset[Any] = frozenset(
    {Tensor.dim, Tensor.size, Tensor.stride, Tensor.numel, Tensor.__len__, Tensor.is_contiguous}
    | {Tensor.is_floating_point, Tensor.is_complex, torch.is_floating_point, torch.is_complex}
    | {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_cuda")}
    | {getattr(Tensor, name).__get__ for name in ("requires_grad", "layout", "is_sparse")}
)


#: Constants that have no tensors inside.
_NUMBERS: frozenset[type] = frozenset({int, float, bool, str, type(None), torch.dtype})


class PlanError(Exception):
    """The model cannot be planned, or behaves differently from the probe."""


class UnevenError(PlanError):
    """A mask does not pick as much of every sample."""

    def __init__(self, position: int) -> None:
        super().__init__("a mask does not pick as many rows of every sample")
        self.position = position


class OperatorMode(TorchFunctionMode, ABC):
    """Number the operators of a forward pass in order, looking inside composite functions.

    Calls without gradients, inside ``no_grad`` or a custom ``autograd.Function``, are passed by:
    what they compute is a constant to the backward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        #: The composites that run, outermost first.
        self._inside: list[Function] = []
        self.saving = saving_hooks(False)

    def __torch_function__(
        self, function: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Number one call and let ``visit`` make it."""
        kwargs = kwargs or {}
        if function in _QUERIES or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        # What a composite's own helper hands back is the composite again: make the call itself.
        body = None if function in self._inside else expansion(function, args, kwargs)
        if body is not None:
            self._inside.append(function)
            try:
                with self:
                    return body(*args, **kwargs)
            finally:
                self._inside.pop()
        self.count += 1
        hooks = saving_hooks(False)
        if hooks == self.saving:
            return self.visit(self.count, function, args, kwargs)
        # A checkpoint would run its part of the model again, unseen: let autograd save tensors.
        torch._C._autograd._pop_saved_tensors_default_hooks()
        try:
            return self.visit(self.count, function, args, kwargs)
        finally:
            torch._C._autograd._push_saved_tensors_default_hooks(*hooks)

    @abstractmethod
    def visit(self, position: int, function: Function, args: Any, kwargs: Any) -> Any:
        """Make the call that stands at ``position``."""


class SourceMode(OperatorMode):
    """Follow parameters through the operators that consume nothing else."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        super().__init__()
        #: By identity of the parameters that were selected, their names and plain tensors.
        self.names = {id(p): name for name, p in parameters.items()}
        self._selected = frozenset(parameters)
        self.values = {id(p): plain_value(p) for p in parameters.values()}
        self._sources: dict[int, Source] = {}

    def name(self, value: object) -> str | None:
        """The name of a value that is itself a parameter that was selected."""
        return self.names.get(id(value))

    def source(self, value: object) -> Source | None:
        """The source that a value is, if it leads to a parameter that was selected."""
        key = id(value)
        if key in self.names:
            if key not in self._sources:
                self.check_surroundings()
                self._sources[key] = Source.of_parameter(self.names[key], self.values[key])
            return self._sources[key]
        if isinstance(value, Tensor):
            found = derived_source(value)
            if found is not None and not self._selected.isdisjoint(found.leaves):
                return found
        return None

    def sources_in(self, args: Any, kwargs: Any) -> list[Source]:
        """Every source among the arguments of an operator."""
        found = [self.source(t) for t in tensors_in((*args, *kwargs.values()))]
        return [s for s in found if s is not None]

    def check_surroundings(self) -> None:
        """Refuse parameters inside a ``torch.func`` transform.

        Raises:
            PlanError: It runs under ``torch.func``.
        """
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise PlanError("the model transforms a function of its parameters with torch.func")

    def call_plain(self, function: Function, args: Any, kwargs: Any) -> Any:
        """Make a call with plain tensors for parameters, as the model's values."""
        plain = map(self._plain, args)
        if not kwargs:
            return function(*plain)
        return function(*plain, **{k: self._plain(v) for k, v in kwargs.items()})

    def derive(self, function: Function, args: Any, kwargs: Any, parents: list[Source]) -> Any:
        """Make a call that consumes parameters alone, so that its result can be pulled back."""
        out = function(*map(self._live, args), **{k: self._live(v) for k, v in kwargs.items()})

        def wrap(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(wrap, value))
            if not isinstance(value, Tensor) or not value.requires_grad:
                return value
            same = next((p for p in parents if p.live is value), None)
            if same is not None:  # an in-place operator, or a cast that had nothing to do
                return same.value
            return Source.derived(value, parents, function in _ISOMETRIC)[0]

        return wrap(out)

    def _plain(self, value: Any) -> Any:
        kind = type(value)
        if kind in _NUMBERS or (kind is Tensor and not value.is_leaf):
            return value  # a constant, or a result of the graph, which is no source
        plain = self.values.get(id(value))
        if plain is not None:
            return plain
        if isinstance(value, Tensor):
            if value.is_inference():  # autograd cannot save these
                return value.detach().clone()
            return value.detach() if is_source(value) else value
        if type(value) in (list, tuple):
            return type(value)(map(self._plain, value))
        return value

    def _live(self, value: Any) -> Any:
        source = self.source(value)
        if source is not None:
            return source.live
        if type(value) in (list, tuple):
            return type(value)(map(self._live, value))
        return self._plain(value)


def name_of(function: Function) -> str:
    """An operator's name, for people."""
    return getattr(function, "__name__", None) or str(function)


def _packs_saved() -> bool:
    """Whether saved-tensor hooks are active, for PyTorch versions that cannot list them."""
    with torch.enable_grad():
        leaf = torch.ones((), dtype=torch.float32, device="cpu", requires_grad=True)
        saved: Any = leaf.exp().grad_fn
    try:  # a saved tensor has one pair of hooks at most
        saved._raw_saved_result.register_hooks(lambda tensor: tensor, lambda tensor: tensor)
    except RuntimeError:
        return True
    return False


#: What packs the tensors that autograd saves now: a checkpoint that is not reentrant does.
saving_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: _packs_saved()
)
