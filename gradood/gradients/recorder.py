"""Follow a plan through one forward pass, and turn gradients into norms as they arrive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextvars import copy_context
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from gradood import ops, pending
from gradood.gradients.activations import Layer
from gradood.gradients.arguments import leads_nowhere
from gradood.gradients.capture import Function, SourceMode, name_of, saving_hooks
from gradood.gradients.contribution import Contribution
from gradood.gradients.graph import End, TakenOver, watch
from gradood.gradients.known import UNLIKE, Known, KnownStep
from gradood.gradients.known_kernels import Rows
from gradood.gradients.outputs import Outputs
from gradood.gradients.plan import Plan, PlanError
from gradood.gradients.reading import make_measured, measure
from gradood.gradients.rules import Call
from gradood.gradients.rules.linear import LinearCall, tokens
from gradood.gradients.source import Source
from gradood.gradients.standardised import StandardisedUse
from gradood.gradients.step import Step, require_fit
from gradood.gradients.survey import Use
from gradood.ops.row_norms import row_sqnorm

#: Called with a parameter's name, the call whose rule computes its norm, the call's input and
#: output gradient, and what served it; see ``explain``.
Observer = Callable[[str, Call, Tensor | None, Tensor, ops.Served], None]

#: Per-sample gradients that have to be materialised are, this many bytes at a time.
GRADIENT_BYTES = 64 << 20


_Result = TypeVar("_Result")


class Recorder(SourceMode):
    """Follow a plan through one forward pass, then turn gradients into norms ``[N, L]``."""

    #: Whether calls that can may replace their operator's backward pass.
    may_take_over = True
    #: Whether to keep what a backward pass needs.
    backward_follows = True
    #: Whether to measure what operators with a step make.
    keeps_activations = False
    #: Whether these measurements keep their graph, which leads to the input.
    differentiable = False
    #: What earlier passes found out, if this one may repeat it.
    known: Known | None = None

    def __init__(
        self,
        plan: Plan,
        parameters: Mapping[str, Parameter],
        samples: int,
        device: torch.device,
        observer: Observer | None = None,
    ) -> None:
        covered = {name: p for name, p in parameters.items() if name in plan.combine}
        super().__init__(covered)
        self.plan = plan
        self._parameters = covered
        self.samples = samples
        self._observer = observer
        self._waiting: dict[str, list[Contribution]] = defaultdict(list)
        self._norms: dict[str, list[Tensor]] = defaultdict(list)
        self._sums: dict[Any, pending.Sums] = {}
        self.last_label = True
        self._outputs = Outputs()
        #: Norms by kernels that are known.
        self.rows = Rows(0, samples)
        #: The input ``[N, F]`` of the last linear operator so far that maps one vector a sample.
        self.features: Tensor | None = None
        #: What was measured of the outputs of operators with a step.
        self.layers: list[Layer] = []
        self.anchor = _anchor(device)
        #: Where hooks run: autograd calls them from threads of devices, too.
        self._context, self._deferring = copy_context(), copy_context()
        self._deferring.run(pending.HELD.set, self._sums)

    def __torch_function__(
        self, function: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Repeat what is known of a call, or follow it as it comes."""
        if self.known is not None and self.count < len(self.known.entries):
            entry = self.known.entries[self.count]
            if (
                entry is not None
                and entry.function is function
                and torch.is_grad_enabled()
                and saving_hooks(False) == self.saving  # nobody packs what autograd saves
                and torch._C._functorch.peek_interpreter_stack() is None
            ):
                out = entry.repeat(self, args, kwargs or {})
                if out is not UNLIKE:
                    self.count += 1
                    return out
        return super().__torch_function__(function, types, args, kwargs)

    def visit(self, position: int, function: Function, args: Any, kwargs: Any) -> Any:
        """Make one call; where the plan has a step, watch its output."""
        expected = self.plan.expect(position, function, args, kwargs, self.samples)
        if expected.step is not None:
            return self._follow(expected.step, function, args, kwargs)
        if leads_nowhere(args, kwargs):
            return function(*args, **kwargs)
        sources = self.sources_in(args, kwargs)
        if not sources:
            return self.call_plain(function, args, kwargs)
        self.check_surroundings()
        if expected.meets:
            raise PlanError(f"{name_of(function)} was called with other parameters")
        return self.derive(function, args, kwargs, sources)

    def _follow(self, step: Step, function: Function, args: Any, kwargs: Any) -> Tensor:
        """Make a call of the plan, and register for the gradient of its output."""
        self.check_surroundings()
        call = step.rule.bind(function, *args, **kwargs)
        if isinstance(call, str):
            raise PlanError(call)
        for use in step.uses:
            if not self._is_used(use, call):
                raise PlanError(f"{name_of(function)} was called with other parameters")
        call.axis = step.axis
        compute = partial(self.call_plain, function, args, kwargs)
        data = call.data
        held = data.detach() if step.needs_data and data is not None else None
        self._outputs.note(data)
        out: Tensor
        version = 0 if held is None else held._version
        replaced = self.may_take_over and self.backward_follows and step.adds_all
        taken = replaced and held is not None and call.takes_over()
        measured = self.keeps_activations and step.position in self.plan.measured
        measures = measured
        if measures and not self.differentiable and call.measures():
            # Where autograd has to see the operator itself, it is measured afterwards.
            if taken or not (self.backward_follows and data is not None and data.requires_grad):
                compute, measures = partial(self._make_measured, step, call), False
        if self.may_take_over and self.backward_follows and call.passes_on():
            compute = partial(TakenOver.apply, data, compute, call.passed_on)
        received = partial(self._in_context, step, call, [held], version)
        if not self.backward_follows:
            out = compute()
        elif taken:
            out = TakenOver.apply(data, compute, partial(received, self._take_over))
        else:
            hook = partial(received, self._receive)
            out = watch(compute(), self.anchor, hook, self.plan.strange)
            if step.reads_output:
                call.result = self._outputs.add(out)
        require_fit(step, self.samples, out, call.data)
        if self.known is not None and data is not None and not measured:
            seen = self.known, step, call, data, args, kwargs, out
            self.known.entries[step.position - 1] = KnownStep.of(*seen)
        if measures:
            whole = out if self.differentiable else out.detach()
            self.layers.append(measure(step, call, whole, self.samples))
        if isinstance(call, LinearCall) and data is not None and data.dim() == 2:
            self.features = data.detach()
        call.data = None  # the hook must not keep it alive for longer than needed
        return out

    def _make_measured(self, step: Step, call: Call) -> Tensor:
        """The output of an operator that is measured while it is made."""
        out, layer = make_measured(step, call)
        self.layers.append(layer)
        return out

    def _in_context(
        self,
        step: Step,
        call: Call,
        held: list[Tensor | None],
        version: int,
        compute: Callable[..., _Result],
        d: Tensor,
    ) -> _Result:
        """Compute in the context of the pass, where norms that are added up may be deferred."""
        context = self._deferring if call.defers and step.adds_all else self._context
        return context.copy().run(compute, step, call, held, version, d)

    def _is_used(self, use: Use, call: Call) -> bool:
        operand = call.operands.get(use.role)
        if use.itself:
            return self.name(operand) == use.parameter
        source = self.source(operand)
        return source is not None and use.parameter in source.leaves and use.region == source.region

    def finish(self) -> None:
        """Check after the forward pass that it did not end early."""
        self.plan.finish(self.count)
        self._outputs.hold()

    def backward(self, logits: Tensor, gradient: Tensor, last: bool) -> dict[str, Tensor]:
        """Run one backward pass from the logit gradient ``[N, C]``: squared norms by parameter."""
        self._norms = defaultdict(list)
        self._waiting = defaultdict(list)
        self.last_label = last
        self.rows = Rows(0 if self.known is None else self.known.rows, self.samples)
        if logits.requires_grad:
            end = End.apply(logits, gradient.to(logits))
            torch.autograd.grad(end, [self.anchor], retain_graph=not last, allow_unused=True)
        for name in list(self._waiting):  # uses whose output the logits do not depend on
            self._combine(name)
        for name, norms in self.rows.norms():
            self._norms[name].append(norms)
        pending.finish(self._sums)
        return {name: self._total(found) for name, found in self._norms.items()}

    def _total(self, norms: list[Tensor]) -> Tensor:
        """The sum of norms; a model may lie on several devices."""
        device = self.anchor.device
        total, *others = [n if n.device == device else n.to(device) for n in norms]
        return sum(others, total)

    def compute(self, step: Step, call: Call, x: Tensor, d: Tensor, taken: bool) -> Tensor | None:
        """The norms of a call of which no kernel is known, and what it passes on if it is taken."""
        way = self._take_over if taken else self._receive
        return self._in_context(step, call, [x], x._version, way, d)

    def _receive(
        self, step: Step, call: Call, held: list[Tensor | None], version: int, d: Tensor
    ) -> None:
        """Turn the gradient of an operator's output into norms, or keep it for the other uses."""
        x, d = self._unpack(step, held, version, d)
        if step.added:
            norms = self._observed(step, call, x, d, call.norms, x, d, step.roles)
            for use in step.added:
                self._norms[use.parameter].append(norms[use.role])
        if not step.adds_all:
            self._collect(step, call, x, d)

    def _collect(self, step: Step, call: Call, x: Tensor | None, d: Tensor) -> None:
        """Combine the uses whose norms are not simply added, or keep them for the others."""
        shared: dict[int, StandardisedUse | None] = {}
        for use in step.uses:
            strategy, count = self.plan.combine[use.parameter]
            if strategy != "add":
                source = self.source(call.operands[use.role])
                assert source is not None
                if (strategy, count) == ("sum", 1):
                    if id(source) not in shared:
                        shared[id(source)] = StandardisedUse.of(call, use.role, x, d, source)
                    whole = shared[id(source)]
                    if whole is not None and self._add_standardised(whole, use, source):
                        served = ops.Served("", "torch", "standardised")
                        self._observe(use.parameter, call, x, d, served)
                        continue
                waiting = self._waiting[use.parameter]
                waiting.append(Contribution(call, use.role, x, d, source))
                self._observe(use.parameter, call, x, d, ops.Served("", "torch", strategy))
                if len(waiting) == count:
                    self._combine(use.parameter)
        if call.result is not None and self.last_label:
            call.result.release()

    def _add_standardised(self, whole: StandardisedUse, use: Use, source: Source) -> bool:
        """Add the norm of a parameter behind a standardised weight, if there is a formula."""
        found = whole.norm(source.leaves[use.parameter])
        if found is None:
            return False
        norm, lost = found
        for n in lost:
            row = slice(n, n + 1)
            one = Contribution(whole.call, use.role, whole.x[row], whole.d[row], source)
            norm[row] = row_sqnorm(one.gradient(use.parameter, slice(None)))
        self._norms[use.parameter].append(norm)
        return True

    def _take_over(
        self, step: Step, call: Call, held: list[Tensor | None], version: int, d: Tensor
    ) -> Tensor:
        """As ``_receive``, but replaces the operator's backward pass and returns its result."""
        x, d = self._unpack(step, held, version, d)
        norms, gradient = self._observed(step, call, x, d, call.backward, x, d)
        for use in step.added:
            self._norms[use.parameter].append(norms[use.role])
        return gradient

    def _unpack(
        self, step: Step, held: list[Tensor | None], version: int, d: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """An operator's input and d, samples first; the input is freed after the last label."""
        data = held[0]
        if self.last_label:
            held.clear()
        if data is not None and data._version != version:
            raise PlanError(f"the input of {name_of(step.function)} was overwritten")
        x = None if data is None else step.axis.split(data, self.samples)
        return x, step.axis.split(d.detach() if d.requires_grad else d, self.samples)

    def _observed(
        self,
        step: Step,
        call: Call,
        x: Tensor | None,
        d: Tensor,
        compute: Callable[..., _Result],
        *arguments: Any,
    ) -> _Result:
        """Compute, and report to the observer which backends served the operators."""
        if self._observer is None:
            return compute(*arguments)
        with ops.tracing() as served:
            result = compute(*arguments)
        for use in step.added:
            self._observe(use.parameter, call, x, d, *served)
        return result

    def _observe(
        self, name: str, call: Call, x: Tensor | None, d: Tensor, *served: ops.Served
    ) -> None:
        if self._observer is not None:
            how = served[0] if served else ops.Served("", "torch", "reduce")
            self._observer(name, call, x, d, how)

    def _combine(self, name: str) -> None:
        uses = self._waiting.pop(name)
        if self.plan.combine[name][0] == "concatenate":
            role, call = uses[0].role, uses[0].call
            d = torch.cat([tokens(u.d) for u in uses], 1)
            x = None
            if uses[0].x is not None:
                x = torch.cat([tokens(u.x) for u in uses if u.x is not None], 1)
            self._norms[name].append(call.norms(x, d, [role])[role])
            return
        numel = self._parameters[name].numel() + max(u.call.operands[u.role].numel() for u in uses)
        chunk = max(1, GRADIENT_BYTES // (4 * max(numel, 1)))
        parts = []
        for i in range(0, self.samples, chunk):
            total = sum(u.gradient(name, slice(i, i + chunk)) for u in uses)
            assert isinstance(total, Tensor)
            parts.append(row_sqnorm(total))
        self._norms[name].append(torch.cat(parts))


@cache
def _anchor(device: torch.device) -> Tensor:
    """The empty leaf of every graph."""
    return torch.zeros((), device=device, requires_grad=True, dtype=torch.float32)
