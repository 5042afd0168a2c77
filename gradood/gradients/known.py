"""Operators of a pass that ran before with tensors of the same layouts.

What a plan says of an operator, how a rule reads it, and which kernel serves it all follow from the
layouts of its tensors, its constants and its parameters. A pass that meets the same again compares
these, and asks nothing else: the time of small models is in the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from gradood.gradients.capture import Function, PlanError, name_of
from gradood.gradients.expansion import may_expand
from gradood.gradients.graph import TakenOver, watch
from gradood.gradients.known_kernels import Kernel, Layout, Rows, is_plain
from gradood.gradients.plan import Expected, Plan
from gradood.gradients.rules import Call
from gradood.gradients.rules.linear import LinearCall
from gradood.gradients.step import Step, require_fit
from gradood.ops.dispatch import settings

#: Constants that can be compared; a tuple only with itself, since tensors may be in another.
_COMPARED = (bool, int, float, str, type(None))
#: Arguments that are no tensors and hold none.
_INERT = frozenset({float, bool, str, type(None), torch.dtype, torch.device, torch.Size})


#: What a call comes to that is not the one which was expected.
UNLIKE: Any = object()
#: Batch sizes and settings whose passes a plan knows.
_KEPT = 8


class Known:
    """By position, what earlier passes with as many samples found out."""

    def __init__(self, operators: Sequence[Expected]) -> None:
        self.entries: list[KnownOperator | KnownStep | None] = [
            KnownOperator.of(expected) for expected in operators
        ]
        self.entries.append(None)  # the model may do more than was seen
        #: How many rows of norms ``[N]`` its steps fill.
        self.rows = 0

    def take_row(self) -> int:
        """The number of a row that nothing else fills."""
        self.rows += 1
        return self.rows - 1


def known(
    plan: Plan,
    parameters: Mapping[str, Parameter],
    samples: int,
    device: torch.device,
    activations: bool,
) -> Known | None:
    """What is known of passes like the one that begins now; None where operators are watched."""
    if device.type != "cpu" or torch._C._len_torch_dispatch_stack():
        return None
    shapes = tuple([p.shape for p in parameters.values()])
    key = (samples, activations, shapes, torch.get_num_threads(), *settings(device.type))
    found: Known | None = plan.known.get(key)
    if found is None:
        if len(plan.known) == _KEPT:
            plan.known.pop(next(iter(plan.known)))
        found = plan.known[key] = Known(plan.operators)
    return found


class Pass(Protocol):
    """What runs a pass, as far as it concerns what is known."""

    plan: Plan
    samples: int
    anchor: Tensor
    #: By identity of the parameters that were selected, plain tensors.
    values: dict[int, Tensor]
    #: Whether no other backward pass follows.
    last_label: bool
    features: Tensor | None
    #: Norms by kernels that are known.
    rows: Rows

    def compute(self, step: Step, call: Call, x: Tensor, d: Tensor, taken: bool) -> Tensor | None:
        """The norms of a call of which no kernel is known, and what it passes on if it is taken."""


class KnownOperator(NamedTuple):
    """An operator that meets no parameter."""

    function: Function
    #: How many arguments come by position; None where sizes may differ from pass to pass.
    positional: int | None
    #: Of all arguments; None in the place of one that is a tensor, or of no matter.
    constants: tuple[Any, ...]

    @classmethod
    def of(cls, expected: Expected) -> KnownOperator | None:
        """The operator, if nothing but its constants needs to be compared."""
        special = expected.step or expected.varying or expected.even is not None
        if special or may_expand(expected.function):
            return None
        if expected.constants is None:
            return cls(expected.function, None, ())
        first, *named = expected.constants
        return cls(expected.function, len(first), (*first, *named))

    def repeat(self, run: Pass, args: Any, kwargs: Any) -> Any:
        """Make the call, if it is the one that was expected; else return ``UNLIKE``."""
        values = (*args, *kwargs.values()) if kwargs else args
        if self.positional is None:
            for value in values:
                kind = type(value)
                if value.is_leaf if kind is Tensor else kind not in _INERT and kind is not int:
                    return UNLIKE
            return self.function(*args, **kwargs)
        if len(args) != self.positional or len(values) != len(self.constants):
            return UNLIKE
        for value, constant in zip(values, self.constants, strict=True):
            kind = type(value)
            if kind is Tensor:
                if constant is not None or value.is_leaf:
                    return UNLIKE
            elif constant is None:
                if kind not in _INERT:
                    return UNLIKE
            elif value is not constant and not _equal(value, constant):
                return UNLIKE
        return self.function(*args, **kwargs)


def _equal(value: Any, constant: Any) -> bool:
    """Whether a constant is the same; of a tuple, in which tensors may be, nothing is known."""
    kind = type(value)
    return kind is type(constant) and kind in _COMPARED and value == constant


class KnownStep:
    """A step whose arguments were read before, and what became of its output."""

    def __init__(
        self, known: Known, step: Step, call: Call, x: Tensor, args: Any, kwargs: Any, out: Tensor
    ) -> None:
        self._known, self._step, self.function = known, step, step.function
        self._positional, self._keywords = len(args), tuple(kwargs)
        self._x, self._flows, self._leaf = Layout.of(x), x.requires_grad, x.is_leaf
        self._taken, self._passes_on = call.takes_over(), call.passes_on()
        self._vectors = isinstance(call, LinearCall) and x.dim() == 2
        self._out = out.shape
        #: Where x was among all arguments.
        values = (*args, *kwargs.values())
        self._place = next(i for i, value in enumerate(values) if value is x)
        others = [*values[: self._place], *values[self._place + 1 :]]
        #: Their identities; constants are kept, so that nothing else can have one of these.
        self._others = [*map(id, others)]
        self._constants = [value for value in others if not isinstance(value, Tensor)]
        #: Places of the parameters among all arguments, with their identities.
        parameters = ((i, v) for i, v in enumerate(values) if isinstance(v, Parameter))
        self._parameters = [(i, id(v)) for i, v in parameters]
        self._kernel: Kernel | None = None
        #: The last layout of a gradient for which a kernel was looked for.
        self._tried: Layout | None = None

    @classmethod
    def of(
        cls, known: Known, step: Step, call: Call, x: Tensor, args: Any, kwargs: Any, out: Tensor
    ) -> KnownStep | None:
        """What is known of a step that was followed; None where it is asked anew every time."""
        values = (*args, *kwargs.values())
        fixed = step.adds_all and step.needs_data and all(use.itself for use in step.uses)
        constant = x.is_leaf and (x.requires_grad or x.is_inference())
        if not fixed or constant or type(x) is not Tensor or not is_plain(x):
            return None
        others = [value for value in values if value is not x]
        if len(others) != len(values) - 1 or not all(map(_is_kept, others)):
            return None
        return cls(known, step, call, x, args, kwargs, out)

    def repeat(self, run: Pass, args: Any, kwargs: Any) -> Any:
        """Make the call, if it is the one that was seen; else return ``UNLIKE``."""
        if len(args) != self._positional or (*kwargs,) != self._keywords:
            return UNLIKE
        called = [*args, *kwargs.values()]
        x = called.pop(self._place)
        if (
            [*map(id, called)] != self._others
            or type(x) is not Tensor
            or not self._x.fits(x)
            or x.requires_grad is not self._flows
            or x.is_leaf is not self._leaf
            or (self._leaf and x.is_inference())
        ):
            return UNLIKE
        called.insert(self._place, x)
        for place, number in self._parameters:
            plain = run.values.get(number)
            called[place] = called[place].detach() if plain is None else plain
        held = [x.detach()]
        arrive = partial(self._arrive, run, held, x._version, called)
        compute = self._with(self.function, called)
        out: Tensor
        if self._taken:
            out = TakenOver.apply(x, compute, arrive)
        else:
            if self._passes_on:
                passed_on = self._bound(called).passed_on
                compute = partial(TakenOver.apply, x, compute, passed_on)
            out = watch(compute(), run.anchor, arrive, run.plan.strange)
        if out.shape != self._out:
            require_fit(self._step, run.samples, out, x)
        if self._vectors:
            run.features = held[0]
        called[self._place] = None  # the hook must not keep it alive for longer than needed
        return out

    def _arrive(
        self, run: Pass, held: list[Tensor], version: int, called: list[Any], d: Tensor
    ) -> Tensor | None:
        """Turn the gradient of the output into norms, and into that of x if it is taken over."""
        x = held[0]
        if run.last_label:
            held.clear()
        if x._version != version:
            raise PlanError(f"the input of {name_of(self.function)} was overwritten")
        if self._kernel is not None:
            done = self._kernel.run(x, d, called, run.rows)
            if done is not None:
                return done[0]
        called = [*called]
        called[self._place] = x
        call = self._bound(called)
        if is_plain(d) and self._tried != Layout.of(d):
            self._tried, take_row = Layout.of(d), self._known.take_row
            options = called, run.samples, self._taken, take_row
            self._kernel = Kernel.of(self._step, call, x, d, *options)
        return run.compute(self._step, call, x, d, self._taken)

    def _with(self, function: Callable[..., Any], called: list[Any]) -> Callable[[], Any]:
        """A function with its arguments, as the operator was called."""
        if not self._keywords:
            return partial(function, *called)
        first = self._positional
        return partial(
            function, *called[:first], **dict(zip(self._keywords, called[first:], strict=True))
        )

    def _bound(self, called: list[Any]) -> Call:
        """The call, read by the rule as it was before."""
        call = self._with(partial(self._step.rule.bind, self.function), called)()
        assert isinstance(call, Call)
        call.axis = self._step.axis
        return call


def _is_kept(value: Any) -> bool:
    """Whether an argument beside x tells by its identity that it is the same again."""
    if isinstance(value, Tensor):
        constant = type(value) is Tensor and not value.requires_grad
        return constant or isinstance(value, Parameter)
    return isinstance(value, (*_COMPARED, tuple))
