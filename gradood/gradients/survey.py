"""A pass on two samples and one on three: what runs, and where parameters meet the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood.errors import ModelError
from gradood.gradients.arguments import constants, tensors_in
from gradood.gradients.axis import WEIGHTS
from gradood.gradients.capture import Function, PlanError, SourceMode, name_of
from gradood.gradients.graph import End, own, watch
from gradood.gradients.memory import changes_a_view, memory, writes
from gradood.gradients.picking import NUMBERS, Pick, pick
from gradood.gradients.rules import Call, bind
from gradood.gradients.source import Region, derived_source, graph_leaves, parameter_name

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

    function: Function
    call: Call | str
    uses: tuple[Use, ...]
    out: Tensor | None
    #: The version of the call's data when it was read.
    version: int
    #: Positions of the operators that picked places by values on the way to this one.
    picked: frozenset[int] = frozenset()
    #: The gradient of ``out``, of one backward pass after the other.
    gradients: list[Tensor] = field(default_factory=list)

    @property
    def data(self) -> Tensor | None:
        """The operator's other input."""
        return self.call.data if isinstance(self.call, Call) else None


class Follower(SourceMode):
    """Record, operator by operator, where parameters meet the batch, with the tensors involved."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Parameter]) -> None:
        super().__init__(parameters)
        self.parameters = parameters
        self._weights = {memory(p): name for name, p in model.named_parameters() if p.numel()}
        #: By the position of their operator, which counts from one.
        self.meetings: dict[int, Meeting] = {}
        self.logits = torch.empty(0, dtype=torch.float32, device="cpu")
        #: Whether random numbers were drawn.
        self.random = False
        #: Why a rule says that samples which influence one another do.
        self.refusal: ModelError | None = None

    def finish(self) -> None:
        """Check after the forward pass that it did not end early."""

    def __torch_function__(
        self, function: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse calls that change a parameter in place; make the others.

        Raises:
            ModelError: The model writes to its own parameters.
        """
        written = args[0] if args and writes(function) else kwargs.get("out") if kwargs else None
        if isinstance(written, Tensor):
            name = self._weights.get(memory(written))
            if name is not None:
                raise ModelError(
                    f"the forward pass changes the parameter {name} itself ({name_of(function)}), "
                    "so that scoring would; change it once, before, or compute with a copy"
                )
        return super().__torch_function__(function, types, args, kwargs)

    def meet(self, position: int, function: Function, args: Any, kwargs: Any) -> Any:
        """Make a call in which parameters meet the batch, and record it."""
        self.check_surroundings()
        call, uses = self._bind(function, args, kwargs)
        out = self.call_plain(function, args, kwargs)
        if not isinstance(out, Tensor):
            call = f"{name_of(function)} returns no single tensor"
        data = call.data if isinstance(call, Call) else None
        meeting = Meeting(function, call, uses, None, 0 if data is None else data._version)
        if isinstance(out, Tensor):
            out = self.observe(meeting, out)
            meeting.out = out
        self.meetings[position] = meeting
        return out

    def observe(self, meeting: Meeting, out: Tensor) -> Tensor:
        """The output as the model gets it."""
        return own(out)

    def _bind(
        self, function: Function, args: Any, kwargs: Any
    ) -> tuple[Call | str, tuple[Use, ...]]:
        everything = (args, tuple(kwargs.values()))
        given = [t for t in tensors_in(everything) if self.source(t) is not None]
        call: Call | str
        try:
            call = bind(function, args, kwargs)
        except ModelError as error:  # true of a batch, perhaps not of what a sample alone is
            self.refusal, call = error, str(error)
        if isinstance(call, Call) and changes_a_view(function, args):
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
        return call, tuple(uses)


class Survey(Follower):
    """Record the calls, which results depend on the batch, and their shapes.

    ``smaller`` is the survey of a smaller batch: what is larger here grows with the batch, even
    where it is made of parameters and sizes alone.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Parameter],
        rows: Tensor,
        smaller: Survey | None = None,
    ) -> None:
        super().__init__(model, parameters)
        self.functions: list[Function] = []
        self.constants: list[Any] = []
        self.shapes: list[list[torch.Size]] = []
        #: Positions at which a result depends on the batch, and at which one grows with it.
        self.meets: set[int] = set()
        self.grown: set[int] = set()
        #: By position, what operators pick by values of the batch.
        self.picks: dict[int, Pick] = {}
        #: By memory, the positions of the picks that a tensor comes from.
        self._picked: dict[int, frozenset[int]] = {}
        #: By the position at which they leave a tensor as numbers, the picks that these come from.
        self.left: dict[int, frozenset[int]] = {}
        #: By position, after the first pick, the shapes of the arguments.
        self._given: dict[int, list[torch.Size]] = {}
        #: By memory, what grows with the batch: what else was seen to be made.
        self._made: dict[int, Tensor] = {}
        self.bytes = 0
        self._counted = {memory(rows)}
        self._smaller = smaller
        self._anchor = torch.zeros((), dtype=torch.float32, device=rows.device, requires_grad=True)
        # Memory that depends on the rows; the tensors are kept so that it is not used again.
        self._batch = {memory(rows): rows}

    def visit(self, position: int, function: Function, args: Any, kwargs: Any) -> Any:
        """Make one call, and record it."""
        name = name_of(function)
        if function is torch.autograd.grad and (kwargs.get("create_graph") or True in args[4:5]):
            raise PlanError("the model differentiates through a gradient of its own")
        if self._smaller is not None and self._smaller.functions[position - 1 : position] != [
            function
        ]:
            raise PlanError("the operators that the model runs depend on the size of the batch")
        sources = self.sources_in(args, kwargs)
        if sources:
            self.check_surroundings()
        if (picked := pick(name, args, kwargs, self._depends)) is not None:
            self.picks[position] = picked
        picks = self._picks_behind(position, args, kwargs) if self.picks else frozenset()
        picks |= {position} & self.picks.keys()
        read = () if name in _BLANK else args[:1] if name in _LIKE else (args, *kwargs.values())
        meets = any(map(self._depends, tensors_in(read)))
        if not sources:
            out = self.call_plain(function, args, kwargs)
        elif meets or (writes(function) and self._grows(position, args[0])):
            out = self.meet(position, function, args, kwargs)
        else:
            out = self.derive(function, args, kwargs, sources)
            if self._grows(position, out):
                out = self.meet(position, function, args, kwargs)
        grown = self._grows(position, out)
        if position in self.meetings:
            self.meetings[position].picked = picks
        if meets and name in NUMBERS:
            self.left[position] = picks
        tensors = tensors_in(out)
        if meets:
            written = args[:1] if name == "__setitem__" else ()
            self._batch.update((memory(t), t) for t in (*tensors, *written))
            self.meets.add(position)
            if picks:
                self._picked.update((memory(t), picks) for t in (*tensors, *written))
        if grown:
            self._made.update((memory(t), t) for t in tensors)
            if picks:
                self._picked.update((memory(t), picks) for t in tensors)
            self.grown.add(position)
            for t in tensors:
                if not t._is_view() and memory(t) not in self._counted:  # some write in place
                    self._counted.add(memory(t))
                    self.bytes += t.nbytes
        self.functions.append(function)
        self.constants.append(constants((args, *kwargs.values())))
        self.shapes.append([t.shape for t in tensors])
        return out

    def finish(self) -> None:
        """Check after the forward pass that it did not end early."""
        if self._smaller is not None and self.count != self._smaller.count:
            raise PlanError("the operators that the model runs depend on the size of the batch")

    def observe(self, meeting: Meeting, out: Tensor) -> Tensor:
        """Have backward passes leave the gradient of an output with its meeting."""
        if self._smaller is None or not out.is_floating_point():
            return own(out)
        return watch(out, self._anchor, lambda d: meeting.gradients.append(d.detach()))

    def backward(self, weights: tuple[float, ...]) -> None:
        """Pull the gradients of a loss back to all meetings, every sample's times its weight."""
        if not self.logits.requires_grad:
            return
        generator = torch.Generator().manual_seed(0)
        pulled = torch.randn(
            self.logits.shape, generator=generator, dtype=torch.float32, device="cpu"
        )
        pulled *= torch.tensor(weights, dtype=torch.float32, device="cpu")[:, None]
        end = End.apply(self.logits, pulled.to(self.logits))
        # Graphs of models that hide something from the mode may not lead to the anchor.
        leaves = [leaf for leaf in graph_leaves(self.logits) if leaf.requires_grad]
        torch.autograd.grad(end, [self._anchor, *leaves], retain_graph=True, allow_unused=True)

    def pull_back(self) -> None:
        """Leave two gradients with every meeting: of all samples alike, and of each weighted."""
        self.backward((1.0,) * len(WEIGHTS))
        self.backward(WEIGHTS)

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

    def _depends(self, value: object) -> bool:
        return isinstance(value, Tensor) and memory(value) in self._batch

    def _picks_behind(self, position: int, args: Any, kwargs: Any) -> frozenset[int]:
        """The picks that the arguments come from: all, for what comes from a hidden operator."""
        found: frozenset[int] = frozenset()
        given = tensors_in((args, *kwargs.values()))
        self._given[position] = [t.shape for t in given]
        before = [] if self._smaller is None else self._smaller._given.get(position, [])
        for i, t in enumerate(given):
            place = memory(t)
            known = place in self._batch or place in self._made
            grows = self._given[position][i : i + 1] != before[i : i + 1]
            hidden = not known and (grows or t.grad_fn is not None)
            found |= frozenset(self.picks) if hidden else self._picked.get(place, frozenset())
        return found

    def _grows(self, position: int, out: Any) -> bool:
        if self._smaller is None:
            return False
        shapes = [t.shape for t in tensors_in(out)]
        return shapes != self._smaller.shapes[position - 1]


class Replay(Follower):
    """The same operators again, on other samples."""

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, Parameter], survey: Survey
    ) -> None:
        super().__init__(model, parameters)
        self._survey = survey

    def visit(self, position: int, function: Function, args: Any, kwargs: Any) -> Any:
        """Make one call; record it where parameters meet the batch."""
        if self._survey.functions[position - 1 : position] != [function]:
            raise PlanError("the operators that the model runs change from call to call")
        if position in self._survey.meetings:
            return self.meet(position, function, args, kwargs)
        sources = self.sources_in(args, kwargs)
        if sources:
            self.check_surroundings()
            return self.derive(function, args, kwargs, sources)
        return self.call_plain(function, args, kwargs)

    def finish(self) -> None:
        """Check after the forward pass that it did not end early."""
        if self.count != self._survey.count:
            raise PlanError("the operators that the model runs change from call to call")


def _tensors(call: Call) -> Iterator[Tensor]:
    yield from call.operands.values()
    if call.data is not None:
        yield call.data
