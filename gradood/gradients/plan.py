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
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood.errors import ModelError
from gradood.gradients.axis import SampleAxis, differs, fitting_axes, grown_dimension
from gradood.gradients.capture import Function, SourceMode, flatten, name_of
from gradood.gradients.rules import RULES, Call
from gradood.gradients.source import Region, disjoint
from gradood.gradients.state import Written, observed

Forward = Callable[[Tensor], Tensor]
_Run = Callable[[SourceMode, Tensor], Tensor]


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
    axis: SampleAxis


@dataclass
class Plan:
    """How to compute the norms of the selected parameters of one model for one kind of input."""

    steps: dict[int, Step] = field(default_factory=dict)
    #: Parameters that the rules do not cover, and why.
    uncovered: dict[str, str] = field(default_factory=dict)
    #: How to combine the uses of a parameter: ``add`` norms, ``concatenate`` tokens, or ``sum``
    #: gradients; and how many uses there are.
    combine: dict[str, tuple[str, int]] = field(default_factory=dict)
    #: How the uncovered ones are computed, ``vmap`` or ``loop``: chosen when first needed.
    fallback: str = ""
    bytes_per_sample: int = 0
    written: Written = Written()


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
    found: list[Written] = []  # what each pass wrote to the model

    def run(mode: SourceMode, rows: Tensor) -> Tensor:
        torch.manual_seed(0)
        with observed(model, found), mode:
            return forward(rows)

    try:
        with torch.random.fork_rng(_devices(x)), _require_grad(parameters.values()):
            grown = _grown_operators(run, rows, parameters)
            two = _probe(run, rows[:2], parameters, grown)
            three = _probe(run, rows, parameters, grown)
            changed = _probe(run, _change_middle(rows), parameters, grown)
    except PlanError as error:
        return Plan(uncovered=dict.fromkeys(parameters, str(error)))
    _check_independence(three.logits, changed.logits)
    plan = Plan(bytes_per_sample=three.bytes // 3)
    plan.written = Written(*map(frozenset[str]().union, *found))
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


class _Shapes(SourceMode):
    """Record the shapes that every operator returns."""

    def __init__(self, parameters: Mapping[str, Parameter], rows: Tensor) -> None:
        super().__init__(parameters)
        self.shapes: list[list[torch.Size]] = []
        self._batch = {id(rows): rows}  # what depends on the rows, kept so that ids stay unique

    def visit(self, position: int, function: Function, args: Any, kwargs: Any) -> Any:
        sources = self.sources_in(args, kwargs)
        everything = flatten((args, tuple(kwargs.values())))
        meets = any(id(value) in self._batch for value in everything)
        if sources and not meets:
            out = self.derive(function, args, kwargs, sources)
        else:
            out = self.call_plain(function, args, kwargs)
        tensors = [t for t in flatten(out) if isinstance(t, Tensor)]
        if meets:
            self._batch.update((id(t), t) for t in tensors)
        self.shapes.append([t.shape for t in tensors])
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
        if not isinstance(call, str) and len(
            {id(t) for t in roles.values()} & {id(t) for t in given}
        ) < len({id(t) for t in given}):
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
                found[name] = (
                    "used where no operator can be seen (a custom Function or TorchScript)"
                )
            stack += [parent for parent, _ in node.next_functions]
        return found


def _grown_operators(
    run: _Run, rows: Tensor, parameters: Mapping[str, Parameter]
) -> dict[int, bool]:
    """By position, whether an operator's result grew with the batch."""
    records = []
    for batch in (rows[:2], rows):
        shapes = _Shapes(parameters, batch)
        run(shapes, batch)
        records.append(shapes.shapes)
    two, three = records
    if len(two) != len(three):
        raise PlanError("the operators that the model runs depend on the size of the batch")
    return {i + 1: a != b for i, (a, b) in enumerate(zip(two, three, strict=True))}


def _probe(
    run: _Run, rows: Tensor, parameters: Mapping[str, Parameter], grown: dict[int, bool]
) -> _Probe:
    probe = _Probe(parameters, grown)
    probe.logits = run(probe, rows)
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
    axes = [_axes(two.out, three.out, changed.out)]
    if call.data is not None:
        assert two.call.data is not None and changed.call.data is not None
        axes.append(_axes(two.call.data, call.data, changed.call.data))
        needed = any(use.role in call.needs_data for use in three.uses)
        if needed and call.data._version != three.version:
            return "the operator's input is overwritten later in the forward pass"
    if not all(axes):
        return "the samples influence one another, or lie in no regular order"
    # Every rule has the samples at one place in the input and the output: each narrows the other.
    fitting = set.intersection(*axes)
    if len(fitting) != 1:
        return (
            "the samples change places in the operator" if not fitting else "their order is unclear"
        )
    (axis,) = fitting
    return call.refuses(axis) or Step(
        three.position, three.function, RULES[three.function], three.uses, axis
    )


def _axes(two: Tensor, three: Tensor, changed: Tensor) -> set[SampleAxis]:
    dim = grown_dimension(two.shape, three.shape)
    return set() if dim is None else fitting_axes(dim, three, changed)


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
            plan.steps[position] = replace(step, uses=uses)


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
        moved = (
            rolled if not torch.equal(rolled, middle) else torch.where(middle > 0, middle - 1, 1)
        )
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
            p
            for p in parameters
            if not p.is_inference() and (id(p) in _FLIPPED or not p.requires_grad)
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
