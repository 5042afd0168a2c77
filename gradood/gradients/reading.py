"""A forward pass that is measured, and that no backward pass follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gradood.gradients.activations import Layer, layer_of, measured_layer
from gradood.gradients.capture import Function, OperatorMode, PlanError, name_of
from gradood.gradients.plan import Forward, Plan
from gradood.gradients.rules import Call
from gradood.gradients.rules.linear import LinearCall
from gradood.gradients.step import Step, require_fit

#: After these a model differentiates something itself.
_TRACKING: frozenset[Any] = frozenset({Tensor.requires_grad_, Tensor.requires_grad.__set__})  # type: ignore[attr-defined]


class Reader(OperatorMode):
    """Follow a plan through one forward pass, and measure what its operators make.

    The model sees that gradients are enabled, since some take another way without; its operators
    run without a graph.
    """

    def __init__(self, plan: Plan, parameters: Mapping[str, Parameter], samples: int) -> None:
        super().__init__()
        self._plan, self._samples = plan, samples
        self._parameters = {name: id(p) for name, p in parameters.items()}
        self._tracking = False
        #: The input ``[N, F]`` of the last linear operator so far that maps one vector a sample.
        self.features: Tensor | None = None
        #: What was measured of the outputs of operators with a step.
        self.layers: list[Layer] = []

    def visit(self, position: int, function: Function, args: Any, kwargs: Any) -> Any:
        """Make one call without a graph; where the plan measures it, measure."""
        step = self._plan.expect(position, function, args, kwargs, self._samples).step
        if function in _TRACKING:
            self._tracking = True
        if self._tracking or torch._C._functorch.peek_interpreter_stack() is not None:
            return self._read(step, position, function, args, kwargs)
        torch._C._set_grad_enabled(False)
        try:
            return self._read(step, position, function, args, kwargs)
        finally:
            torch._C._set_grad_enabled(True)

    def _read(
        self, step: Step | None, position: int, function: Function, args: Any, kwargs: Any
    ) -> Any:
        measures = position in self._plan.measured
        if step is None or not (measures or issubclass(step.rule, LinearCall)):
            return function(*args, **kwargs)
        call = step.rule.bind(function, *args, **kwargs)
        if isinstance(call, str):
            raise PlanError(call)
        for use in step.uses:
            other = id(call.operands.get(use.role)) != self._parameters[use.parameter]
            if use.itself and other:
                raise PlanError(f"{name_of(function)} was called with other parameters")
        call.axis = step.axis
        if measures and not self._tracking and call.measures():
            out, layer = make_measured(step, call)
            self.layers.append(layer)
        else:
            out = function(*args, **kwargs)
            if measures:
                self.layers.append(measure(step, call, out.detach(), self._samples))
        require_fit(step, self._samples, out, call.data)
        if isinstance(call, LinearCall) and call.data is not None and call.data.dim() == 2:
            self.features = call.data.detach()
        return out


def read(
    plan: Plan, forward: Forward, x: Tensor, parameters: Mapping[str, Parameter]
) -> tuple[Tensor, Reader]:
    """Measure one micro-batch without a backward pass: logits, and what the pass recorded.

    Raises:
        PlanError: The model did something else than in the probe.
    """
    reader = Reader(plan, parameters, x.shape[0])
    with reader:
        logits = forward(x)
    plan.finish(reader.count)
    return logits.detach(), reader


def measure(step: Step, call: Call, out: Tensor, samples: int) -> Layer:
    """What the operator of a step made."""
    # Counted from the end, since the samples may be several dimensions.
    channel = call.channels if call.channels < 0 else call.channels - out.dim()
    return measured_layer(step.uses[0].parameter, step.axis.split(out, samples), channel)


def make_measured(step: Step, call: Call) -> tuple[Tensor, Layer]:
    """The output of a call that ``measures``, and what it is, without a graph."""
    out, sums = call.measured()
    return out, layer_of(step.uses[0].parameter, sums, out[0, 0].numel())
