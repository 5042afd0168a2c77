"""Run a model on a few samples to see what it does with them and with its parameters.

Two passes survey the operators: which run, which results depend on the batch or grow with it. Then
the model runs on two samples, on three, and on three of which one is changed, each in turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood.gradients.capture import (
    Function,
    PlanError,
    SourceMode,
    constants,
    flatten,
    name_of,
    watch,
)
from gradood.gradients.picking import picked_dimensions
from gradood.gradients.rules import RULES, Call
from gradood.gradients.source import Region, derived_source, graph_leaves, parameter_name
from gradood.gradients.state import Written, observed

Forward = Callable[[Tensor], Tensor]
_Run = Callable[[SourceMode, Tensor], Tensor]

#: What reads no more than the shape and type of its other arguments, or of all of them.
_LIKE = {"type_as", "expand_as", "view_as", "reshape_as", "to"}
_BLANK = {"new_zeros", "new_ones", "new_empty", "new_full"} | {
    f"{kind}_like" for kind in ("zeros", "ones", "empty", "full", "rand", "randn")
}


class Use(NamedTuple):
    """A parameter's part in one operator call."""

    parameter: str
    role: str
    region: Region | None
    #: Whether the operand is the parameter itself, not something made from it.
    itself: bool


@dataclass
class Meeting:
    """One operator call in which parameters meet the batch; a string says why no rule knows it."""

    position: int
    function: Function
    call: Call | str
    uses: tuple[Use, ...]
    out: Tensor | None
    version: int


@dataclass
class Operators:
    """The operators of a forward pass in order; positions count from one."""

    functions: tuple[Function, ...]
    #: The constants among their arguments; None where they vary with the size of the batch.
    constants: tuple[Any, ...]
    #: Where a result depends on the batch or grows with it.
    meets: frozenset[int]
    grown: frozenset[int]
    #: The first that puts samples in places that their values decide, or infinity.
    picks: float


@dataclass
class Findings:
    """What all passes found."""

    operators: Operators
    two: Probe
    three: Probe
    #: By sample, the three with this one changed.
    changed: tuple[Probe, ...]
    #: Whether the model draws random numbers.
    random: bool = False
    written: Written = field(default_factory=Written)


def investigate(
    model: nn.Module, forward: Forward, x: Tensor, parameters: Mapping[str, Parameter]
) -> Findings:
    """Probe ``model`` with the first rows of ``x``.

    Raises:
        PlanError: no two passes are alike, so that no plan can be made.
    """
    rows = x[torch.arange(3, device=x.device) % len(x)]
    found: list[Written] = []  # what each pass wrote to the model
    drawn: list[bool] = []

    def run(mode: SourceMode, rows: Tensor) -> Tensor:
        torch.manual_seed(0)
        before = _random_state(x)
        with observed(model, found), mode:
            out = forward(rows)
        drawn.append(not before.equal(_random_state(x)))
        return out

    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices), require_grad(parameters.values()):
        operators = _operators(run, rows, parameters)
        # The last two of three: a sample's place in the batch must not matter.
        two, three, *changed = (
            _probe(run, batch, parameters, operators)
            for batch in (rows[1:], rows, *(change(rows, sample) for sample in range(3)))
        )
    written = Written(*map(frozenset[str]().union, *found))
    return Findings(operators, two, three, tuple(changed), any(drawn), written)


class _Survey(SourceMode):
    """Record what runs, which results depend on the batch, and their shapes."""

    def __init__(self, parameters: Mapping[str, Parameter], rows: Tensor) -> None:
        super().__init__(parameters)
        self.functions: list[Function] = []
        self.constants: list[Any] = []
        self.shapes: list[list[torch.Size]] = []
        self.meets: list[bool] = []
        #: By position, the shape of the first argument, and its dimensions in which values pick.
        self.picks: dict[int, tuple[torch.Size, set[int]]] = {}
        self._anchor = torch.zeros((), device=rows.device, requires_grad=True)
        # Memory that depends on the rows; the tensors are kept so that it is not used again.
        self._batch = {_memory(rows): rows}

    def visit(self, position: int, function: Function, args: Any, kwargs: Any) -> Any:
        name = name_of(function)
        if function is torch.autograd.grad and (kwargs.get("create_graph") or True in args[4:5]):
            raise PlanError("the model differentiates through a gradient of its own")
        sources = self.sources_in(args, kwargs)
        if sources:
            self.check_surroundings()
        dims = picked_dimensions(name, args, kwargs, self._depends)
        if dims:
            self.picks[position] = (args[0].shape, dims)
        read = () if name in _BLANK else args[:1] if name in _LIKE else (args, *kwargs.values())
        meets = any(map(self._depends, flatten(read)))
        if sources and not meets:
            out = self.derive(function, args, kwargs, sources)
        else:
            out = self.call_plain(function, args, kwargs)
            if sources and isinstance(out, Tensor) and out.is_floating_point():
                out = watch(out, self._anchor, lambda gradient: None)
        tensors = [t for t in flatten(out) if isinstance(t, Tensor)]
        if meets:
            written = args[:1] if name == "__setitem__" else ()
            self._batch.update((_memory(t), t) for t in (*tensors, *written))
        self.functions.append(function)
        self.constants.append(constants((args, *kwargs.values())))
        self.meets.append(meets)
        self.shapes.append([t.shape for t in tensors])
        return out

    def _depends(self, value: object) -> bool:
        return isinstance(value, Tensor) and _memory(value) in self._batch


class Probe(SourceMode):
    """Record where parameters meet the batch, with the tensors involved."""

    def __init__(
        self, parameters: Mapping[str, Parameter], operators: Operators, device: torch.device
    ) -> None:
        super().__init__(parameters)
        self.parameters = parameters
        self.operators = operators
        self.meetings: list[Meeting] = []
        self.bytes = 0
        self.logits = torch.empty(0)
        self._anchor = torch.zeros((), device=device, requires_grad=True)

    def visit(self, position: int, function: Function, args: Any, kwargs: Any) -> Any:
        """Make one call; where parameters meet the batch, bind it to its rule."""
        if self.operators.functions[position - 1 : position] != (function,):
            raise PlanError("the operators that the model runs change from call to call")
        sources = self.sources_in(args, kwargs)
        if sources:
            self.check_surroundings()
        if sources and position not in self.operators.meets:
            return self.derive(function, args, kwargs, sources)
        call = self._bind(function, args, kwargs) if sources else None
        out = self.call_plain(function, args, kwargs)
        if position in self.operators.grown:
            tensors = [t for t in flatten(out) if isinstance(t, Tensor)]
            self.bytes += sum(t.nbytes for t in tensors if not t._is_view())
        if call is not None:
            self._record(position, function, call, out)
            if isinstance(out, Tensor) and out.is_floating_point():
                out = watch(out, self._anchor, lambda gradient: None)
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
        if isinstance(call, Call) and any(t.is_complex() for t in _tensors(call)):
            call = "complex numbers have no rule"
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
                itself = self.name(tensor) is not None
                uses += [
                    Use(name, role, source.region, itself)
                    for name in source.leaves
                    if name in self.parameters
                ]
        return call, uses

    def _record(
        self, position: int, function: Function, bound: tuple[Call | str, list[Use]], out: Any
    ) -> None:
        call, uses = bound
        if not isinstance(out, Tensor):
            call, out = f"{name_of(function)} returns no single tensor", None
        version = 0
        if isinstance(call, Call) and call.data is not None:
            version = call.data._version
        self.meetings.append(Meeting(position, function, call, tuple(uses), out, version))

    def hidden_uses(self) -> tuple[dict[str, str], bool]:
        """Parameters that entered the graph unseen, and why; and whether it has other leaves."""
        names = {id(p): name for name, p in self.parameters.items()}
        found: set[str] = set()
        strange = False
        for leaf in graph_leaves(self.logits):
            source = derived_source(leaf)
            name = names.get(id(leaf), parameter_name(leaf))
            found |= set(source.leaves) if source is not None else {name} if name else set()
            strange |= leaf is not self._anchor
        reason = (
            "used where no operator can be seen (a custom Function or TorchScript), or written "
            "into a tensor"
        )
        return dict.fromkeys((n for n in self.parameters if n in found), reason), strange


def _operators(run: _Run, rows: Tensor, parameters: Mapping[str, Parameter]) -> Operators:
    two, three = (_Survey(parameters, batch) for batch in (rows[1:], rows))
    run(two, rows[1:])
    run(three, rows)
    if two.functions != three.functions:
        raise PlanError("the operators that the model runs depend on the size of the batch")
    shapes = zip(two.shapes, three.shapes, strict=True)
    grown = frozenset(i + 1 for i, (a, b) in enumerate(shapes) if a != b)
    met = (i + 1 for i, meets in enumerate(two.meets) if meets or three.meets[i])
    picks = [i for i in three.picks if _moves_samples(two.picks.get(i), three.picks[i])]
    steady = zip(two.constants, three.constants, strict=True)
    return Operators(
        tuple(three.functions),
        tuple(b if a == b else None for a, b in steady),
        grown.union(met),
        grown,
        min(picks, default=torch.inf),
    )


def _moves_samples(
    two: tuple[torch.Size, set[int]] | None, three: tuple[torch.Size, set[int]]
) -> bool:
    if two is None or two[1] != three[1] or len(two[0]) != len(three[0]):
        return True
    grown = {i for i, (a, b) in enumerate(zip(two[0], three[0], strict=True)) if a != b}
    return bool(grown & three[1]) or len(grown) > 1


def _probe(
    run: _Run, rows: Tensor, parameters: Mapping[str, Parameter], operators: Operators
) -> Probe:
    probe = Probe(parameters, operators, rows.device)
    probe.logits = run(probe, rows)
    if probe.count != len(operators.functions):
        raise PlanError("the operators that the model runs change from call to call")
    return probe


def _tensors(call: Call) -> Iterator[Tensor]:
    yield from call.operands.values()
    if call.data is not None:
        yield call.data


def _changes_a_view(function: Function, args: Any) -> bool:
    name = name_of(function)
    in_place = name.endswith("_") and not name.endswith("__") or name.startswith("__i")
    return in_place and isinstance(args[0], Tensor) and args[0]._is_view()


def _memory(t: Tensor) -> int:
    """What views of one tensor have in common, and other tensors have not."""
    try:
        return int(t.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse, or inside torch.func
        return id(t)


def _random_state(x: Tensor) -> Tensor:
    state = torch.get_rng_state()
    if x.device.type == "cuda":
        state = torch.cat([state, torch.cuda.get_rng_state(x.device)])
    return state


def change(rows: Tensor, sample: int) -> Tensor:
    """Change one of three samples to something of the same range."""
    changed = rows.clone()
    row = changed[sample]
    if rows.is_floating_point():
        generator = torch.Generator().manual_seed(sample)
        noise = torch.rand(row.shape, generator=generator).to(row)
        spread = row.max() - row.min() if row.numel() else row.new_zeros(())
        row.mul_(0.5).add_(noise * torch.where(spread > 0, spread, 1))
    elif rows.dtype == torch.bool:
        row.logical_not_()
    else:
        rolled = row.flatten().roll(1).view_as(row)
        moved = rolled if not torch.equal(rolled, row) else torch.where(row > 0, row - 1, 1)
        row.copy_(moved)
    return changed


_FLIPPED: dict[int, int] = {}
_FLIP_LOCK = threading.Lock()


@contextmanager
def require_grad(parameters: Any) -> Iterator[None]:
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
