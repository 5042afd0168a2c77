"""See every operator of a forward pass, and hand each gradient that reaches one to its rule.

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

from gradood.gradients.expansion import expansion
from gradood.gradients.source import Source, derived_source, is_source, plain_value

Function = Callable[..., Any]

#: Operators that copy or cast, element for element.
_ISOMETRIC: frozenset[Any] = frozenset(
    {Tensor.clone, torch.clone, Tensor.contiguous, Tensor.to, Tensor.type_as, Tensor.type}
    | {Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16}
)

#: What is asked of a tensor, and no tensor returned.
_QUESTIONS: frozenset[Any] = frozenset(
    {Tensor.dim, Tensor.size, Tensor.stride, Tensor.numel, Tensor.__len__, Tensor.is_contiguous}
    | {Tensor.is_floating_point, Tensor.is_complex, torch.is_floating_point, torch.is_complex}
    | {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_cuda")}
    | {getattr(Tensor, name).__get__ for name in ("requires_grad", "layout", "is_sparse")}
)


class PlanError(Exception):
    """The model does what no plan can follow, or something else than in the probe."""


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
        self._saving = _saving_hooks(False)

    def __torch_function__(
        self, function: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Number one call and let ``visit`` make it."""
        kwargs = kwargs or {}
        if function in _QUESTIONS or not torch.is_grad_enabled():
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
        hooks = _saving_hooks(False)
        if hooks == self._saving:
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
        self._names = {id(p): name for name, p in parameters.items()}
        self._selected = frozenset(parameters)
        self._values = {id(p): plain_value(p) for p in parameters.values()}
        self._sources: dict[int, Source] = {}

    def name(self, value: object) -> str | None:
        """The name of a value that is itself a parameter that was selected."""
        return self._names.get(id(value))

    def source(self, value: object) -> Source | None:
        """The source that a value is, if it leads to a parameter that was selected."""
        key = id(value)
        if key in self._names:
            if key not in self._sources:
                self.check_surroundings()
                self._sources[key] = Source.of_parameter(self._names[key], self._values[key])
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
        """Refuse an operator whose parameters are differentiated elsewhere as well.

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
        plain = self._values.get(id(value))
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


class Anchor(torch.autograd.Function):
    """Start the autograd graph at a tensor without copying it.

    Marking the tensor as changed gives it a place in the graph without making it a leaf, so the
    model may still change it in place.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, anchor: Tensor) -> Tensor:
        """Return ``tensor`` itself, now part of the graph."""
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        """What lies below gets the gradient, if anything does; the anchor needs none."""
        return gradients[0], None


class TakenOver(torch.autograd.Function):
    """An operator with another backward pass than its own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, compute: Callable[[], Tensor], backward: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return what ``compute`` does."""
        ctx.take_over = backward
        return compute()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        """Turn the gradient of the output into that of ``x``."""
        return ctx.take_over(gradients[0]), None, None


class End(torch.autograd.Function):
    """A scalar whose gradient with respect to the logits is given.

    The same as ``grad_outputs``, whose shapes PyTorch compares with the help of a library for
    symbolic mathematics: a second to load, and half a millisecond a call.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, gradient: Tensor) -> Tensor:
        """Return a zero that depends on the logits."""
        ctx.gradient = gradient
        return logits.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        """What was given."""
        return ctx.gradient, None


def own(out: Tensor) -> Tensor:
    """An output that is no view: in-place changes of one rewrite its history, and drop hooks."""
    if not out._is_view():
        return out
    same: Tensor = torch.ops.aten._unsafe_view.default(out, out.shape)
    return same


def watch(
    out: Tensor, anchor: Tensor, hook: Callable[[Tensor], None], always: bool = False
) -> Tensor:
    """Have ``hook`` receive the gradient of an operator's output, as it is now.

    ``always`` anchors outputs that are in a graph already, which may not lead to the anchor.
    """
    out = own(out)
    if always or not out.requires_grad:
        out = Anchor.apply(out, anchor)
    place = out.output_nr
    # A hook of the node, not of the tensor: hooks that the model adds to the tensor come first.
    node: Any = out.grad_fn

    def receive(gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[place]
        if gradient is not None:
            hook(gradient)

    node.register_prehook(receive)
    return out


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, (list, tuple)):
        return []
    found: list[Tensor] = []
    for item in value:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple)):
            found += tensors_in(item)
    return found


def constants(value: Any) -> Any:
    """What arguments say about where things lie: whole numbers, flags, names and slices."""
    if isinstance(value, Tensor):
        return None
    if isinstance(value, (list, tuple)):
        return tuple(map(constants, value))
    if isinstance(value, slice):
        return constants((value.start, value.stop, value.step))
    return value if isinstance(value, (int, str)) else None


def same_constants(args: Any, kwargs: Any, expected: Any) -> bool:
    """Whether ``constants((args, *kwargs.values()))`` is what was expected, quickly."""
    first = expected[0]
    if len(args) != len(first) or len(kwargs) != len(expected) - 1:
        return False
    for value, known in zip(args, first, strict=True):
        if value is not known and not _is_constant(value, known):
            return False
    if kwargs:
        for value, known in zip(kwargs.values(), expected[1:], strict=True):
            if value is not known and not _is_constant(value, known):
                return False
    return True


def _is_constant(value: Any, known: Any) -> bool:
    if known is None and isinstance(value, Tensor):
        return True
    return bool(constants(value) == known)


def grow_alike(known: tuple[Any, Any], now: Any, samples: int) -> bool:
    """Whether constants lie on the line through those for two and for three samples."""
    two, three = known
    if isinstance(three, tuple):
        return (
            isinstance(two, tuple)
            and isinstance(now, tuple)
            and len(two) == len(three) == len(now)
            and all(grow_alike((a, b), c, samples) for a, b, c in zip(two, three, now, strict=True))
        )
    if type(two) is int and type(three) is int:
        return bool(now == two + (three - two) * (samples - 2))
    return bool(two == three == now)


def leads_nowhere(args: Any, kwargs: Any) -> bool:
    """Whether all tensors among the arguments are intermediate results of the graph.

    Such tensors are neither parameters nor made from parameters alone.
    """
    for value in (*args, *kwargs.values()) if kwargs else args:
        if value.is_leaf if type(value) is Tensor else isinstance(value, _MAY_HOLD):
            return False
    return True


_MAY_HOLD = (Tensor, list, tuple, dict)


def name_of(function: Function) -> str:
    """An operator's name, for people."""
    return getattr(function, "__name__", None) or str(function)


def _packs_saved() -> bool:
    """Whether anything packs what autograd saves, where PyTorch is too old to say what does."""
    with torch.enable_grad():
        leaf = torch.ones((), dtype=torch.float32, device="cpu", requires_grad=True)
        saved: Any = leaf.exp().grad_fn
    try:  # a saved tensor has one pair of hooks at most
        saved._raw_saved_result.register_hooks(lambda tensor: tensor, lambda tensor: tensor)
    except RuntimeError:
        return True
    return False


#: What packs the tensors that autograd saves now: a checkpoint that is not reentrant does.
_saving_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: _packs_saved()
)
