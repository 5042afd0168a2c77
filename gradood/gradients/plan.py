"""What a forward pass of a model does with its parameters, found out once and then followed.

The probe runs the model on two and on three samples and once more with one of them changed. That
shows which operators have the samples among their dimensions, where, and whether the samples are
independent; which parameters a rule covers, and why not the others.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood.errors import ModelError
from gradood.gradients.axis import SampleAxis, differs, find_axis, grown_dimension
from gradood.gradients.capture import Function, OperatorMode, SourceMode, flatten, name_of
from gradood.gradients.rules import RULES, Call
from gradood.gradients.source import Region, disjoint

Forward = Callable[[Tensor], Tensor]


class Use(NamedTuple):
    """A parameter's part in one operator call."""

    parameter: str
    role: str
    region: Region | None


@dataclass(frozen=True)
class Step:
    """One operator call in which parameters meet the batch."""

    position: int
    function: Function
    rule: type[Call]
    uses: tuple[Use, ...]
    input_axis: SampleAxis
    output_axis: SampleAxis


@dataclass
class Plan:
    """How to compute the norms of the selected parameters of one model for one kind of input."""

    steps: dict[int, Step] = field(default_factory=dict)
    #: Parameters that the rules do not cover, and why.
    uncovered: dict[str, str] = field(default_factory=dict)
    #: How to combine the uses of a parameter: ``add`` norms, ``concatenate`` tokens, or ``sum``
    #: gradients; and how many uses there are.
    combine: dict[str, tuple[str, int]] = field(default_factory=dict)
    bytes_per_sample: int = 0
    written_buffers: tuple[str, ...] = ()


class PlanError(Exception):
    """The model did something else than in the probe."""


@dataclass
class _Meeting:
    position: int
    function: Function
    call: Call | str
    uses: tuple[Use, ...]
    out: Tensor | None
    version: int


def make_plan(
    model: nn.Module, forward: Forward, x: Tensor, parameters: Mapping[str, Parameter]
) -> Plan:
    """Probe ``model`` with the first rows of ``x`` and plan for the named ``parameters``.

    Raises:
        ModelError: the samples of a batch influence one another.
    """
    rows = _probe_rows(x)
    versions = {name: b._version for name, b in model.named_buffers()}
    try:
        with torch.random.fork_rng(_devices(x)), _require_grad(parameters.values()):
            grown = _grown_operators(forward, rows)
            two = _probe(forward, rows[:2], parameters, grown)
            three = _probe(forward, rows, parameters, grown)
            changed = _probe(forward, _change_middle(rows), parameters, grown)
    except PlanError as error:
        return Plan(uncovered=dict.fromkeys(parameters, str(error)))
    _check_independence(three.logits, changed.logits)
    plan = Plan(bytes_per_sample=three.bytes // 3)
    plan.written_buffers = tuple(n for n, b in model.named_buffers() if b._version != versions[n])
    plan.uncovered.update(three.hidden_uses())
    for meetings in zip(two.meetings, three.meetings, changed.meetings, strict=True):
        step = _step(*meetings)
        if isinstance(step, Step):
            plan.steps[step.position] = step
        else:
            plan.uncovered.update((use.parameter, step) for use in meetings[1].uses)
    _drop_uncovered(plan)
    _combine(plan)
    return plan


class _Shapes(OperatorMode):
    """Record the shapes that every operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[list[torch.Size]] = []

    def visit(self, position: int, function: Function, args: Any, kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        self.shapes.append([t.shape for t in flatten(out) if isinstance(t, Tensor)])
        return out


class _Probe(SourceMode):
    """Record where parameters meet the batch, with the tensors involved."""

    def __init__(self, parameters: Mapping[str, Parameter], grown: Mapping[int, bool]) -> None:
        super().__init__(parameters)
        self.parameters = parameters
        self.grown = grown
        self.meetings: list[_Meeting] = []
        self.bytes = 0
        self.logits = torch.empty(0)

    def visit(self, position: int, function: Function, args: Any, kwargs: Any) -> Any:
        sources = self.sources_in(args, kwargs)
        grown = self.grown.get(position)
        if sources and not grown:
            return self.derive(function, args, kwargs, sources)
        call = self._bind(function, args, kwargs) if sources else None
        out = self.call_plain(function, args, kwargs)
        if grown:
            tensors = [t for t in flatten(out) if isinstance(t, Tensor)]
            self.bytes += sum(t.nbytes for t in tensors if not t._is_view())
        if call is not None:
            self._record(position, function, call, out)
        return out

    def _bind(self, function: Function, args: Any, kwargs: Any) -> tuple[Call | str, list[Use]]:
        rule = RULES.get(function)
        everything = (args, tuple(kwargs.values()))
        given = [t for t in flatten(everything) if self.source(t) is not None]
        call: Call | str = f"no rule for {name_of(function)}"
        if rule is not None:
            try:
                call = rule.bind(function, *args, **kwargs)
            except TypeError:
                call = f"{name_of(function)} was called with arguments that no rule knows"
        if isinstance(call, Call) and _changes_a_view(function, args):
            call = f"{name_of(function)} changes a view in place"
        roles = {} if isinstance(call, str) else dict(call.operands)
        if not isinstance(call, str) and len({id(t) for t in roles.values()} & {id(t) for t in given}) < len({id(t) for t in given}):
            call = f"a parameter is an argument of {name_of(function)} that no rule knows"
        if isinstance(call, str):
            roles = {f"argument {i}": t for i, t in enumerate(given)}
        uses = []
        for role, tensor in roles.items():
            source = self.source(tensor)
            if source is not None:
                uses += [Use(n, role, source.region) for n in source.leaves if n in self.parameters]
        return call, uses

    def _record(
        self, position: int, function: Function, bound: tuple[Call | str, list[Use]], out: Any
    ) -> None:
        call, uses = bound
        if not isinstance(out, Tensor):
            call, out = f"{name_of(function)} returns several tensors", None
        version = 0
        if isinstance(call, Call) and call.data is not None:
            version = call.data._version
        self.meetings.append(_Meeting(position, function, call, tuple(uses), out, version))

    def hidden_uses(self) -> dict[str, str]:
        """Parameters that entered the graph unseen, as leaves of their own."""
        names = {id(p): name for name, p in self.parameters.items()}
        found: dict[str, str] = {}
        seen: set[Any] = set()
        stack = [self.logits.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            name = names.get(id(getattr(node, "variable", None)))
            if name is not None:
                found[name] = "used where no operator can be seen (a custom Function or TorchScript)"
            stack += [parent for parent, _ in node.next_functions]
        return found


def _grown_operators(forward: Forward, rows: Tensor) -> dict[int, bool]:
    """By position, whether an operator's result grew with the batch.

    The model may fill caches in its first pass, so the passes are tried once more.
    """
    for _ in range(2):
        records = []
        for batch in (rows[:2], rows):
            torch.manual_seed(0)
            with _Shapes() as shapes:
                forward(batch)
            records.append(shapes.shapes)
        two, three = records
        if len(two) == len(three):
            return {i + 1: a != b for i, (a, b) in enumerate(zip(two, three, strict=True))}
    raise PlanError("the operators that the model runs depend on the size of the batch")


def _probe(
    forward: Forward, rows: Tensor, parameters: Mapping[str, Parameter], grown: dict[int, bool]
) -> _Probe:
    torch.manual_seed(0)
    with _Probe(parameters, grown) as probe:
        probe.logits = forward(rows)
    if probe.count != len(grown):
        raise PlanError("the operators that the model runs change from call to call")
    return probe


def _step(two: _Meeting, three: _Meeting, changed: _Meeting) -> Step | str:
    """Find where the samples lie in one operator call, or say why no rule covers it."""
    call = three.call
    if isinstance(call, str):
        return call
    if not (two.position == three.position == changed.position) or isinstance(two.call, str):
        return "the operators that the model runs change from call to call"
    assert isinstance(changed.call, Call)
    assert two.out is not None and three.out is not None and changed.out is not None
    output_axis = _axis(two.out, three.out, changed.out)
    if isinstance(output_axis, str):
        return output_axis
    input_axis: SampleAxis | str = output_axis
    if call.data is not None:
        assert two.call.data is not None and changed.call.data is not None
        input_axis = _axis(two.call.data, call.data, changed.call.data)
        if isinstance(input_axis, str):
            return input_axis
        needed = any(use.role in call.needs_data for use in three.uses)
        if needed and call.data._version != three.version:
            return "the operator's input is overwritten later in the forward pass"
    refusal = call.refuses(input_axis, output_axis)
    if refusal is not None:
        return refusal
    return Step(
        three.position, three.function, type(call), three.uses, input_axis, output_axis
    )


def _axis(two: Tensor, three: Tensor, changed: Tensor) -> SampleAxis | str:
    dim = grown_dimension(two.shape, three.shape)
    if dim is None:
        return "no dimension grows with the batch"
    return find_axis(dim, three, changed)


def _check_independence(logits: Tensor, changed: Tensor) -> None:
    if bool(differs(logits.detach(), changed.detach())[[0, 2]].any()):
        raise ModelError(
            "the logits of a sample depend on the other samples of the batch, so there is no "
            "gradient of a single sample; call model.eval(), or score one sample at a time"
        )


def _drop_uncovered(plan: Plan) -> None:
    for position, step in list(plan.steps.items()):
        uses = tuple(u for u in step.uses if u.parameter not in plan.uncovered)
        if not uses:
            del plan.steps[position]
        elif uses != step.uses:
            plan.steps[position] = Step(
                position, step.function, step.rule, uses, step.input_axis, step.output_axis
            )


def _combine(plan: Plan) -> None:
    uses: dict[str, list[tuple[Step, Use]]] = defaultdict(list)
    for step in plan.steps.values():
        for use in step.uses:
            uses[use.parameter].append((step, use))
    counts = Counter({name: len(found) for name, found in uses.items()})
    plan.combine = {name: (_strategy(found), counts[name]) for name, found in uses.items()}


def _strategy(uses: list[tuple[Step, Use]]) -> str:
    regions = [use.region for _, use in uses]
    known = [r for r in regions if r is not None]
    if len(known) < len(regions):
        return "sum"
    if all(disjoint(a, b) for a, b in combinations(known, 2)):
        return "add"
    kinds = {(step.rule, use.role, use.region) for step, use in uses}
    same = len(kinds) == 1 and uses[0][0].rule.concatenates
    return "concatenate" if same else "sum"


def _changes_a_view(function: Function, args: Any) -> bool:
    name = name_of(function)
    in_place = name.endswith("_") and not name.endswith("__") or name.startswith("__i")
    return in_place and isinstance(args[0], Tensor) and args[0]._is_view()


def _probe_rows(x: Tensor) -> Tensor:
    return x[torch.arange(3, device=x.device) % len(x)]


def _change_middle(rows: Tensor) -> Tensor:
    """Change the middle one of three samples to something of the same range."""
    changed = rows.clone()
    middle = changed[1]
    if rows.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(middle.shape, generator=generator).to(middle)
        spread = middle.max() - middle.min() if middle.numel() else middle.new_zeros(())
        middle.mul_(0.5).add_(noise * torch.where(spread > 0, spread, 1))
    elif rows.dtype == torch.bool:
        middle.logical_not_()
    else:
        rolled = middle.flatten().roll(1).view_as(middle)
        moved = rolled if not torch.equal(rolled, middle) else torch.where(middle > 0, middle - 1, 1)
        middle.copy_(moved)
    return changed


def _devices(x: Tensor) -> list[torch.device]:
    return [x.device] if x.device.type == "cuda" else []


_FLIPPED: dict[int, int] = {}
_FLIP_LOCK = threading.Lock()


@contextmanager
def _require_grad(parameters: Any) -> Iterator[None]:
    """Let frozen parameters show up in the graph, for as long as any probe needs it."""
    with _FLIP_LOCK:
        flipped = [
            p for p in parameters if not p.is_inference() and (id(p) in _FLIPPED or not p.requires_grad)
        ]
        for p in flipped:
            _FLIPPED[id(p)] = _FLIPPED.get(id(p), 0) + 1
            p.requires_grad_()
    try:
        yield
    finally:
        with _FLIP_LOCK:
            for p in flipped:
                _FLIPPED[id(p)] -= 1
                if not _FLIPPED[id(p)]:
                    del _FLIPPED[id(p)]
                    p.requires_grad_(False)
