"""Operators of a pass that ran before with tensors of the same layouts.

What a plan says of an operator, how a rule reads it, and which kernel serves it all follow from the
layouts of its tensors, its constants and its parameters. A pass that meets the same again compares
these, and asks nothing else: the time of small models is in the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from gradood.gradients.capture import Function, PlanError, name_of
from gradood.gradients.expansion import may_expand
from gradood.gradients.graph import TakenOver, watch
from gradood.gradients.memory import memory
from gradood.gradients.plan import Expected, Plan
from gradood.gradients.rules import Call
from gradood.gradients.rules.linear import LinearCall
from gradood.gradients.step import Step, require_fit
from gradood.ops.dispatch import prepare, settings

if TYPE_CHECKING:
    from gradood.gradients.engine import Recorder

#: Constants that can be compared; a tuple only with itself, since tensors may be in another.
_COMPARED = (bool, int, float, str, type(None))
#: Arguments that are no tensors and hold none.
_INERT = frozenset({float, bool, str, type(None), torch.dtype, torch.device, torch.Size})


#: Batch sizes and settings whose passes a plan knows.
_KEPT = 8


class Layout(NamedTuple):
    """What a kernel or a rule can tell of a tensor without its numbers."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, t: Tensor) -> Layout:
        """That of a strided tensor."""
        return cls(t.dtype, t.shape, t.stride())

    def fits(self, t: Tensor) -> bool:
        """Whether a tensor is laid out like that, in memory of the processor."""
        return (
            t.dtype is self.dtype
            and t.layout is torch.strided
            and t.shape == self.shape
            and t.stride() == self.stride
            and t.is_cpu
            and not t.is_neg()
        )


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


def known(plan: Plan, samples: int, device: torch.device, activations: bool) -> Known | None:
    """What is known of passes like the one that begins now; None where operators are watched."""
    if device.type != "cpu" or torch._C._len_torch_dispatch_stack():
        return None
    key = (samples, activations, torch.get_num_threads(), *settings(device.type))
    found: Known | None = plan.known.get(key)
    if found is None:
        if len(plan.known) == _KEPT:
            plan.known.pop(next(iter(plan.known)))
        found = plan.known[key] = Known(plan.operators)
    return found


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

    def repeat(self, recorder: Recorder, args: Any, kwargs: Any) -> Any:
        """Make the call if it is the one that was expected; else do nothing, and return None."""
        values = (*args, *kwargs.values()) if kwargs else args
        if self.positional is None:
            for value in values:
                kind = type(value)
                if value.is_leaf if kind is Tensor else kind not in _INERT and kind is not int:
                    return None
            return self.function(*args, **kwargs)
        if len(args) != self.positional or len(values) != len(self.constants):
            return None
        for value, constant in zip(values, self.constants, strict=True):
            kind = type(value)
            if kind is Tensor:
                if constant is not None or value.is_leaf:
                    return None
            elif constant is None:
                if kind not in _INERT:
                    return None
            elif value is not constant and not _equal(value, constant):
                return None
        return self.function(*args, **kwargs)


def _equal(value: Any, constant: Any) -> bool:
    """Whether a constant is the same; of a tuple, in which tensors may be, nothing is known."""
    kind = type(value)
    return kind is type(constant) and kind in _COMPARED and value == constant


@dataclass(frozen=True)
class Kernel:
    """What serves a step: one kernel that reads its tensors where they are."""

    prepared: Any
    launch: Callable[..., None]
    d: Layout
    #: Places of its operands among the arguments of the call; None for one that is missing.
    operands: tuple[int | None, ...]
    #: Numbers of the rows that it fills: norms of the weight, and of the bias unless that is None.
    weight: int
    bias: int | None
    #: Parameters, each with the row of its norms.
    filled: tuple[tuple[str, int], ...]
    #: The gradient that it passes on.
    passed_on: Layout | None

    @classmethod
    def of(
        cls,
        step: Step,
        call: Call,
        x: Tensor,
        d: Tensor,
        called: list[Any],
        recorder: Recorder,
        taken: bool,
    ) -> Kernel | None:
        """The kernel that computes what the rule asks for; None where it is not that alone."""
        split = step.axis.split(x, recorder.samples), step.axis.split(d, recorder.samples)
        operator = call.backward_operator(*split) if taken else call.operator(*split, step.roles)
        found = None if operator is None else prepare(operator.name, *operator.arguments)
        if operator is None or found is None or recorder.known is None:
            return None
        request, launch = found
        places = [None if t is None else _place(t, called) for t in request.operands]
        unknown = places.count(None) > request.operands.count(None)
        if unknown or not (_same(request.x, x) and _same(request.d, d)):
            return None
        rows = [recorder.known.take_row() for _ in range(1 + request.bias)]
        row = dict(zip(operator.roles, rows, strict=False))
        return cls(
            prepared=request.prepared,
            launch=launch,
            d=Layout.of(d),
            operands=tuple(places),
            weight=rows[0],
            bias=rows[1] if request.bias else None,
            filled=tuple((use.parameter, row[use.role]) for use in step.added),
            passed_on=Layout.of(request.passed_on.view(x.shape)) if taken else None,
        )

    def run(self, recorder: Recorder, x: Tensor, d: Tensor, called: list[Any]) -> Tensor | None:
        """Fill the rows, and return the gradient that is passed on."""
        gradient, to = None, 0
        if self.passed_on is not None:
            dtype, shape, stride = self.passed_on
            gradient = torch.empty_strided(shape, stride, dtype=dtype, device="cpu")
            to = gradient.data_ptr()
        operands = [0 if place is None else called[place].data_ptr() for place in self.operands]
        weight, bias = (
            recorder.row(self.weight),
            0 if self.bias is None else recorder.row(self.bias),
        )
        self.launch(self.prepared, x.data_ptr(), d.data_ptr(), operands, to, weight, bias)
        recorder.filled += self.filled
        return gradient


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors begin at the same number of the same memory."""
    return a.dtype == b.dtype and memory(a) == memory(b) and a.data_ptr() == b.data_ptr()


def _place(wanted: Tensor, called: list[Any]) -> int | None:
    """Which argument of a call an operand is."""
    for place, value in enumerate(called):
        if isinstance(value, Tensor) and _same(wanted, value):
            return place if value.shape == wanted.shape and value.is_contiguous() else None
    return None


class KnownStep:
    """A step whose arguments were read, and what became of its output."""

    def __init__(
        self, step: Step, call: Call, x: Tensor, positional: int, keywords: tuple[str, ...]
    ) -> None:
        self.step, self.function = step, step.function
        self.positional, self.keywords = positional, keywords
        self.place, self.x = -1, Layout.of(x)
        self.flows, self.leaf = x.requires_grad, x.is_leaf
        self.taken, self.passes_on = call.takes_over(), call.passes_on()
        self.vectors = isinstance(call, LinearCall) and x.dim() == 2
        self.constants: list[tuple[int, Any]] = []
        self.parameters: list[tuple[int, str, Layout]] = []
        #: Places of parameters that were not selected.
        self.frozen: list[int] = []
        self.others: list[tuple[int, Layout]] = []
        self.kernel: Kernel | None = None
        #: The last layout of a gradient for which a kernel was looked for.
        self.tried: Layout | None = None

    @classmethod
    def of(
        cls, recorder: Recorder, step: Step, call: Call, x: Tensor, args: Any, kwargs: Any
    ) -> KnownStep | None:
        """What is known of a step after it was followed; None where it is asked anew every time."""
        plain = type(x) is Tensor and x.is_cpu and x.layout is torch.strided and not x.is_neg()
        fixed = step.adds_all and step.needs_data and all(use.itself for use in step.uses)
        if not (plain and fixed) or (x.is_leaf and (x.requires_grad or x.is_inference())):
            return None
        known = cls(step, call, x, len(args), tuple(kwargs))
        for place, value in enumerate((*args, *kwargs.values())):
            name = recorder.name(value)
            if value is x:
                known.place = place
            elif name is not None:
                known.parameters.append((place, name, Layout.of(value)))
            elif isinstance(value, Parameter):
                known.frozen.append(place)
            elif type(value) is Tensor and not value.requires_grad and value.is_cpu:
                known.others.append((place, Layout.of(value)))
            elif isinstance(value, (*_COMPARED, tuple)):
                known.constants.append((place, value))
            else:
                return None
        return known if known.place >= 0 else None

    def repeat(self, recorder: Recorder, args: Any, kwargs: Any) -> Tensor | None:
        """Make the call if it is the one that was seen; else do nothing, and return None."""
        if len(args) != self.positional or (*kwargs,) != self.keywords:
            return None
        called = self._called(recorder, (*args, *kwargs.values()) if kwargs else args)
        if called is None:
            return None
        x = called[self.place]
        held = [x.detach()]
        arrive = partial(self._arrive, recorder, held, x._version, called)
        compute: Callable[[], Tensor] = partial(self._with, self.function, called)
        out: Tensor
        if self.taken:
            out = TakenOver.apply(x, compute, arrive)
        else:
            if self.passes_on:
                passed_on = self._bound(called).passed_on
                compute = partial(TakenOver.apply, x, compute, passed_on)
            out = watch(compute(), recorder.anchor, arrive, recorder.plan.strange)
        called[self.place] = None  # the hook must not keep it alive for longer than needed
        require_fit(self.step, recorder.samples, out, x)
        if self.vectors:
            recorder.features = held[0]
        return out

    def _called(self, recorder: Recorder, args: Any) -> list[Any] | None:
        """The arguments, plain tensors for parameters, if all are like those that were seen."""
        for place, constant in self.constants:
            value = args[place]
            if value is not constant and not _equal(value, constant):
                return None
        x = args[self.place]
        if type(x) is not Tensor or not self.x.fits(x):
            return None
        if x.requires_grad is not self.flows or x.is_leaf is not self.leaf:
            return None
        if self.leaf and x.is_inference():
            return None
        called = list(args)
        for place, name, layout in self.parameters:
            number = id(args[place])
            if recorder.names.get(number) != name:
                return None
            called[place] = plain = recorder.values[number]
            if not layout.fits(plain):
                return None
        for place in self.frozen:
            value = args[place]
            if not isinstance(value, Parameter) or id(value) in recorder.names:
                return None
            called[place] = value.detach()
        for place, layout in self.others:
            value = args[place]
            if type(value) is not Tensor or value.requires_grad or not layout.fits(value):
                return None
        return called

    def _arrive(
        self, recorder: Recorder, held: list[Tensor], version: int, called: list[Any], d: Tensor
    ) -> Tensor | None:
        """Turn the gradient of the output into norms, and into that of x if it is taken over."""
        x = held[0]
        if recorder.last_label:
            held.clear()
        if x._version != version:
            raise PlanError(f"the input of {name_of(self.function)} was overwritten")
        if self.kernel is not None and self.kernel.d.fits(d):
            return self.kernel.run(recorder, x, d, called)
        called = [*called]
        called[self.place] = x
        call = self._bound(called)
        if d.is_cpu and d.layout is torch.strided and not d.is_neg() and self.tried != Layout.of(d):
            self.tried = Layout.of(d)
            self.kernel = Kernel.of(self.step, call, x, d, called, recorder, self.taken)
        return recorder.compute(self.step, call, x, d, self.taken)

    def _with(self, function: Callable[..., Any], called: list[Any]) -> Any:
        """Call a function as the operator was called."""
        if not self.keywords:
            return function(*called)
        first = self.positional
        return function(*called[:first], **dict(zip(self.keywords, called[first:], strict=True)))

    def _bound(self, called: list[Any]) -> Call:
        """The call, read by the rule as it was before."""
        call = self._with(partial(self.step.rule.bind, self.function), called)
        assert isinstance(call, Call)
        call.axis = self.step.axis
        return call
