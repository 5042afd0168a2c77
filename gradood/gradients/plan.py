"""What a forward pass of a model does with its parameters, found out once and then followed.

The probe shows which operators have the samples among their dimensions, where, and whether the
samples are independent; which parameters a rule covers, and why not the others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood.errors import GradoodError, ModelError, first_line
from gradood.gradients.activations import measured_positions
from gradood.gradients.arguments import constants, grow_alike, same_constants
from gradood.gradients.caches import Cache
from gradood.gradients.capture import Function, PlanError, UnevenError, name_of
from gradood.gradients.evidence import ROUNDING, Evidence
from gradood.gradients.picking import Pick, picked_evenly
from gradood.gradients.probe import Findings, Forward, Probe
from gradood.gradients.rules import rule_of
from gradood.gradients.source import disjoint
from gradood.gradients.state import Written
from gradood.gradients.step import Step
from gradood.gradients.survey import Survey, Use

__all__ = ["Forward", "Plan", "PlanError", "Step", "make_plan"]


class Expected(NamedTuple):
    """One operator of the pass, as the probe saw it."""

    function: Function
    constants: Any
    meets: bool
    step: Step | None
    #: How many elements of every entry of dimension 0 the operator's mask picks, if it must be so.
    even: int | None
    #: Its constants for two and for three samples, if they must lie on the line through both.
    varying: tuple[Any, Any] | None


@dataclass
class Plan:
    """How to compute the norms of the selected parameters of one model for one kind of input."""

    steps: dict[int, Step] = field(default_factory=dict)
    #: Parameters that the rules do not cover, and why.
    uncovered: dict[str, str] = field(default_factory=dict)
    #: How to combine the uses of a parameter: ``add`` norms, ``concatenate`` tokens, or ``sum``
    #: gradients; and how many uses there are.
    combine: dict[str, tuple[str, int]] = field(default_factory=dict)
    #: Every operator of the pass in order, its constants, and where the batch reaches one.
    functions: tuple[Function, ...] = ()
    constants: tuple[Any, ...] = ()
    meets: frozenset[int] = frozenset()
    #: By position, the constants for two and for three samples, where values of the batch may be
    #: among them: they must grow as those do.
    varying: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    #: Whether the graph has leaves beside the anchor, so that not all of it leads there.
    strange: bool = False
    #: How the uncovered ones are computed, ``vmap`` or ``loop``: chosen when first needed.
    fallback: str = ""
    bytes_per_sample: int = 0
    written: Written = Written()
    #: Emptied before every pass.
    caches: tuple[Cache, ...] = ()
    #: By position, how many elements a mask picks of every sample; and where it does not.
    even: dict[int, int] = field(default_factory=dict)
    uneven: frozenset[int] = frozenset()
    #: What passes found out beside it, see ``known``.
    known: dict[Any, Any] = field(default_factory=dict)
    #: Whether all samples of the probe were alike, which leaves some influences unseen.
    provisional: bool = False

    @cached_property
    def operators(self) -> tuple[Expected, ...]:
        """Every operator of the pass in order, with the step that belongs to it."""
        numbered = enumerate(zip(self.functions, self.constants, strict=True), 1)
        return tuple(
            Expected(
                function=function,
                constants=constants,
                meets=i in self.meets,
                step=self.steps.get(i),
                even=self.even.get(i),
                varying=self.varying.get(i),
            )
            for i, (function, constants) in numbered
        )

    def expect(
        self, position: int, function: Function, args: Any, kwargs: Any, samples: int
    ) -> Expected:
        """The operator that stands at a position, if this call can be it.

        Raises:
            PlanError: It is another one, or works on other places.
        """
        expected = self.operators[position - 1] if position <= len(self.operators) else None
        if expected is None or function != expected.function:
            raise PlanError(f"{name_of(function)} ran where another operator was expected")
        if expected.constants is not None and not same_constants(args, kwargs, expected.constants):
            raise PlanError(f"{name_of(function)} was called with other sizes or places")
        if expected.varying is not None and not grow_alike(
            expected.varying, constants((args, *kwargs.values())), samples
        ):
            raise PlanError(f"{name_of(function)} was called with numbers that the batch decides")
        if expected.even is not None and picked_evenly(args) != expected.even:
            raise UnevenError(position)
        return expected

    def finish(self, count: int) -> None:
        """Check after a forward pass of so many operators that it did not end early.

        Raises:
            PlanError: It did.
        """
        if count != len(self.operators):
            raise PlanError("operators that were there in the probe did not run")

    @cached_property
    def measured(self) -> frozenset[int]:
        """Positions of the operators whose outputs are measured, where activations are wanted."""
        normalising = [position for position, step in self.steps.items() if step.rule.normalises]
        return measured_positions(normalising, self.steps)

    @cached_property
    def pair_lone(self) -> bool:
        """Whether to differentiate a batch of one beside a copy of itself.

        The backward of batch norm in PyTorch 2.14 is wrong on the CPU for a batch of one with a
        gradient that is not contiguous. Where operators may hide, one may be among them.
        """
        names = set(map(name_of, self.functions))
        return not names or self.strange or any(n.endswith(_USE_BATCH_NORM) for n in names)

    @cached_property
    def replaces_batch_norms(self) -> bool:
        """Whether steps that take over leave no batch norm to PyTorch's backward pass."""
        found = [i for i, f in enumerate(self.functions, 1) if name_of(f).endswith(_USE_BATCH_NORM)]
        hidden = not self.functions or self.strange or bool(self.uncovered)
        return not hidden and all(i in self.steps and self.steps[i].may_take_over for i in found)


def make_plan(
    model: nn.Module,
    forward: Forward,
    x: Tensor,
    parameters: Mapping[str, Parameter],
    uneven: frozenset[int] = frozenset(),
) -> Plan:
    """Probe ``model`` with the first rows of ``x`` and plan for the named ``parameters``.

    ``uneven`` are positions of masks that are known not to pick as much of every sample.

    Raises:
        ModelError: The samples of a batch influence one another.
    """
    probe = Probe(model, forward, parameters)
    try:
        found = probe.investigate(x)
        evidence = Evidence(found, 0.0)
        coupled = evidence.coupled and probe.others_matter(found)
        if (evidence.coupled and not coupled) or (
            (coupled or evidence.unclear) and not probe.repeats(found)
        ):
            evidence = Evidence(found, ROUNDING)
            coupled = evidence.coupled
    except (GradoodError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the model raises when it is probed
        return Plan(uncovered=dict.fromkeys(parameters, reason_of(error)))
    if coupled:
        raise found.three.refusal or ModelError(
            "the logits of a sample depend on the other samples of the batch, so there is no "
            "gradient of a single sample; call model.eval()"
        )
    if probe.size_matters(found):
        raise ModelError(
            "the logits of a sample depend on how many samples the batch has, or on the sample's "
            "place among them, so there is no gradient of a single sample; call model.eval()"
        )
    return _plan(found, evidence, uneven)


def reason_of(error: Exception) -> str:
    """Why a probe or a plan came to nothing, for people."""
    if isinstance(error, PlanError):
        return str(error)
    first = first_line(error)
    return f"the model cannot be followed: {type(error).__name__}: {first}"


_USE_BATCH_NORM = ("batch_norm", "instance_norm")


def _plan(found: Findings, evidence: Evidence, uneven: frozenset[int]) -> Plan:
    two, three = found.two, found.three
    steady = zip(two.constants, three.constants, strict=True)
    plan = Plan(
        functions=tuple(three.functions),
        constants=tuple(b if a == b else None for a, b in steady),
        meets=frozenset(two.meets | three.meets | three.grown),
        bytes_per_sample=three.bytes // 3,
        written=found.written,
        caches=found.caches,
        uneven=uneven,
        provisional=not any(found.changed),
    )
    plan.uncovered, plan.strange = three.hidden_uses()
    moved: set[int] = set()
    for position, pick in three.picks.items():
        if _moves_samples(two.picks.get(position), pick):
            if position not in uneven and pick.even is not None and _is_even(two, three, position):
                plan.even[position] = pick.even
            else:
                moved.add(position)
    # After numbers have left the tensors, any operator may depend on them.
    left = (i for i, picks in three.left.items() if picks & moved)
    everything = min(left, default=torch.inf)
    first = min(three.left, default=torch.inf)
    for position, pair in enumerate(zip(two.constants, three.constants, strict=True), 1):
        if position > first and pair[0] != pair[1]:
            plan.varying[position] = pair
    for position, meeting in three.meetings.items():
        step = _step(position, found, evidence)
        if isinstance(step, Step) and (position > everything or moved & meeting.picked):
            step = "the values of the batch decide which rows the operator gets"
        if isinstance(step, Step):
            plan.steps[position] = step
        else:
            plan.uncovered.update((use.parameter, step) for use in meeting.uses)
    _drop_uncovered(plan)
    _combine(plan)
    return plan


def _step(position: int, found: Findings, evidence: Evidence) -> Step | str:
    """Where the samples lie in one operator call, or why no rule covers it."""
    meeting = found.three.meetings[position]
    call = meeting.call
    if isinstance(call, str):
        return call
    axis = evidence.axes[position]
    if isinstance(axis, str):
        return axis
    needed = any(use.role in call.needs_data for use in meeting.uses)
    if needed and call.data is not None and call.data._version != meeting.version:
        return "the operator's input is overwritten later in the forward pass"
    rule = rule_of(call, meeting.function)
    return call.refuses(axis) or Step(position, meeting.function, rule, meeting.uses, axis)


def _moves_samples(two: Pick | None, three: Pick) -> bool:
    if two is None or two.dims != three.dims or len(two.shape) != len(three.shape):
        return True
    grown = _grown(two, three)
    return bool(grown & three.dims) or len(grown) > 1


def _is_even(two: Survey, three: Survey, position: int) -> bool:
    """Whether a mask leaves the samples in their order, with as many rows each."""
    before, now = two.picks.get(position), three.picks[position]
    return before is not None and before.even == now.even and _grown(before, now) == {0}


def _grown(two: Pick, three: Pick) -> set[int]:
    sizes = zip(two.shape, three.shape, strict=True)
    return {i for i, (a, b) in enumerate(sizes) if a != b}


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
    for position, step in plan.steps.items():
        added = tuple(u for u in step.uses if plan.combine[u.parameter][0] == "add")
        plan.steps[position] = replace(step, added=added)


def _strategy(uses: list[tuple[Step, Use]]) -> str:
    regions = [use.region for _, use in uses]
    known = [r for r in regions if r is not None]
    if len(known) < len(regions):
        return "sum"
    if all(disjoint(a, b) for a, b in combinations(known, 2)):
        return "add"
    kinds = {(step.rule, use.role, use.region) for step, use in uses}
    same = len(kinds) == 1 and uses[0][1].role in uses[0][0].rule.concatenates
    return "concatenate" if same else "sum"
