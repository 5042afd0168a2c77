"""What a forward pass of a model does with its parameters, found out once and then followed.

The probe shows which operators have the samples among their dimensions, where, and whether the
samples are independent; which parameters a rule covers, and why not the others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood.errors import ModelError
from gradood.gradients.axis import SampleAxis, differs, fitting_axes, grown_dimension
from gradood.gradients.capture import Function, PlanError, name_of
from gradood.gradients.probe import Findings, Forward, Meeting, Use, investigate
from gradood.gradients.rules import RULES, Call
from gradood.gradients.source import disjoint
from gradood.gradients.state import Written

__all__ = ["Forward", "Plan", "PlanError", "Step", "make_plan"]


@dataclass(frozen=True)
class Step:
    """One operator call in which parameters meet the batch."""

    position: int
    function: Function
    rule: type[Call]
    uses: tuple[Use, ...]
    axis: SampleAxis
    #: Those of the uses whose norms are simply added up.
    added: tuple[Use, ...] = ()

    @cached_property
    def needs_data(self) -> bool:
        """Whether a norm depends on the operator's input."""
        return any(use.role in self.rule.needs_data for use in self.uses)


class Expected(NamedTuple):
    """One operator of the pass, as the probe saw it."""

    function: Function
    constants: Any
    meets: bool
    step: Step | None


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
    #: Whether the graph has leaves beside the anchor, so that not all of it leads there.
    strange: bool = False
    #: How the uncovered ones are computed, ``vmap`` or ``loop``: chosen when first needed.
    fallback: str = ""
    bytes_per_sample: int = 0
    written: Written = Written()

    @cached_property
    def operators(self) -> tuple[Expected, ...]:
        """Every operator of the pass in order, with the step that belongs to it."""
        numbered = enumerate(zip(self.functions, self.constants, strict=True), 1)
        return tuple(Expected(f, c, i in self.meets, self.steps.get(i)) for i, (f, c) in numbered)

    @cached_property
    def pair_lone(self) -> bool:
        """Whether to score a batch of one beside a copy of itself.

        The backward of batch norm in PyTorch 2.14 is wrong on the CPU for a batch of one with a
        gradient that is not contiguous. Where operators may hide, one may be among them.
        """
        names = set(map(name_of, self.functions))
        return not names or self.strange or any(n.endswith(_USE_BATCH_NORM) for n in names)


def make_plan(
    model: nn.Module, forward: Forward, x: Tensor, parameters: Mapping[str, Parameter]
) -> Plan:
    """Probe ``model`` with the first rows of ``x`` and plan for the named ``parameters``.

    Raises:
        ModelError: the samples of a batch influence one another.
    """
    try:
        found = investigate(model, forward, x, parameters)
    except PlanError as error:
        return Plan(uncovered=dict.fromkeys(parameters, str(error)))
    _check_independence(found)
    operators = found.operators
    plan = Plan(bytes_per_sample=found.three.bytes // 3, written=found.written)
    plan.functions, plan.constants = operators.functions, operators.constants
    plan.meets = operators.meets
    hidden, plan.strange = found.three.hidden_uses()
    plan.uncovered.update(hidden)
    passes = (found.two, found.three, *found.changed)
    if len({len(p.meetings) for p in passes}) > 1:
        return Plan(uncovered=dict.fromkeys(parameters, _UNSTEADY))
    for two, three, *changed in zip(*(p.meetings for p in passes), strict=True):
        step = _step(two, three, changed)
        if isinstance(step, Step) and step.position > operators.picks:
            step = "the values of the batch decide which rows the operator gets"
        if isinstance(step, Step):
            plan.steps[step.position] = step
        else:
            plan.uncovered.update((use.parameter, step) for use in three.uses)
    _drop_uncovered(plan)
    _combine(plan)
    return plan


_USE_BATCH_NORM = ("batch_norm", "instance_norm")
_UNSTEADY = "the operators that the model runs change from call to call"


def _step(two: Meeting, three: Meeting, changed: Sequence[Meeting]) -> Step | str:
    """Find where the samples lie in one operator call, or say why no rule covers it."""
    call = three.call
    if isinstance(call, str):
        return call
    if any(
        (m.position, m.uses) != (three.position, three.uses) or isinstance(m.call, str)
        for m in (two, *changed)
    ):
        return _UNSTEADY
    passes = (two, three, *changed)
    axes = [_axes([m.out for m in passes])]
    if call.data is not None:
        axes.append(_axes([m.call.data for m in passes if isinstance(m.call, Call)]))
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


def _axes(tensors: Sequence[Tensor | None]) -> set[SampleAxis]:
    """Where the samples can lie in one tensor of every pass: two, three, and each one changed."""
    two, three, *changed = tensors
    assert two is not None and three is not None
    dim = grown_dimension(two.shape, three.shape)
    if dim is None:
        return set()
    found = [fitting_axes(dim, three, t, i) for i, t in enumerate(changed) if t is not None]
    return set.intersection(*found)


def _check_independence(found: Findings) -> None:
    logits = found.three.logits.detach()
    for sample, probe in enumerate(found.changed):
        others = torch.arange(3, device=logits.device) != sample
        if bool(differs(logits, probe.logits.detach())[others].any()):
            raise ModelError(
                "the logits of a sample depend on the other samples of the batch, so there is no "
                "gradient of a single sample; call model.eval()"
            )
    if found.random:
        return  # other numbers are drawn for a batch of another size
    rounding = rounding_of_logits(logits)
    if bool(differs(logits[1:], found.two.logits.detach(), rounding).any()):
        raise ModelError(
            "the logits of a sample depend on how many samples the batch has, or on the sample's "
            "place among them, so there is no gradient of a single sample; call model.eval()"
        )


def rounding_of_logits(logits: Tensor) -> float:
    """By which share of the largest logit two computations of the same may differ."""
    half = torch.is_autocast_enabled(logits.device.type) or logits.element_size() < 4
    return 0.1 if half else 0.01


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
