"""One operator call of a plan, with what a pass asks of it at every call, found once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from gradood.gradients.axis import SampleAxis
from gradood.gradients.capture import Function, PlanError, name_of
from gradood.gradients.rules import Call
from gradood.gradients.rules.conv import ConvCall
from gradood.gradients.rules.norm import BatchNormCall
from gradood.gradients.survey import Use


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

    @cached_property
    def adds_all(self) -> bool:
        """Whether there is nothing to do with a use but to add its norm."""
        return self.added == self.uses

    @cached_property
    def reads_output(self) -> bool:
        """Whether a formula for a weight made of parameters may read the operator's output."""
        return self.rule is ConvCall and not self.adds_all

    @cached_property
    def may_take_over(self) -> bool:
        """Whether a batch norm gets its gradient from here, if a backend offers that."""
        reads = self.adds_all and self.needs_data
        return reads and issubclass(self.rule, BatchNormCall) and not self.axis.merged

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """What the added ones are to the operator."""
        return tuple(use.role for use in self.added)


def require_fit(step: Step, samples: int, out: Tensor, data: Tensor | None) -> None:
    """Refuse tensors of a step that cannot hold so many samples where the probe saw them.

    Raises:
        PlanError: They are such.
    """
    for tensor in (out, data):
        if tensor is not None and not step.axis.fits(tensor.shape, samples):
            raise PlanError(f"{name_of(step.function)} has tensors of other shapes")
