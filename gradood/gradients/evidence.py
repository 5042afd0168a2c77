"""Conclude from the passes of a probe where the samples lie, and whether they are independent."""

from __future__ import annotations

import torch
from torch import Tensor

from gradood.gradients.axis import (
    SAMPLES,
    SampleAxis,
    differs,
    fitting_axes,
    grown_dimension,
    owners_by_gradient,
    owners_by_value,
)
from gradood.gradients.probe import KEPT, Findings
from gradood.gradients.rules import Call
from gradood.gradients.survey import Meeting

#: Which share of a tensor's largest value is rounding, where a pass run twice differs from itself.
ROUNDING = 1e-5


class Evidence:
    """The verdict on every meeting; ``rounding`` is the share of a largest value that is no change.

    Attributes:
        coupled: Whether the logits of a sample changed with the other samples.
        axes: By position, where the samples lie in a meeting's tensors, or why that is not known.
        unclear: Whether it is not known somewhere.
    """

    def __init__(self, found: Findings, rounding: float) -> None:
        self._found, self._rounding = found, rounding
        logits = (found.three.logits.detach(), found.exchanged.logits.detach())
        self.coupled = bool(differs(*logits, rounding)[KEPT].any())
        self.axes = {
            position: self._axis(position, meeting)
            for position, meeting in found.three.meetings.items()
            if isinstance(meeting.call, Call)
        }
        self.unclear = any(isinstance(axis, str) for axis in self.axes.values())

    def _axis(self, position: int, meeting: Meeting) -> SampleAxis | str:
        other = self._found.exchanged.meetings[position]
        if other.uses != meeting.uses or other.out is None or isinstance(other.call, str):
            return "the operators that the model runs change from call to call"
        assert meeting.out is not None
        two = self._smaller(position, meeting.out, False)
        fitting = self._fitting(two, meeting.out, other.out)
        if meeting.data is not None and other.data is not None:
            # Every rule has the samples at one place in its input and output: each narrows the
            # other.
            two = self._smaller(position, meeting.data, True)
            fitting &= self._fitting(two, meeting.data, other.data)
        if not fitting:
            return "the samples influence one another, or lie in no regular order"
        if len(meeting.gradients) == 2:
            once, weighted = meeting.gradients
            dim = next(iter(fitting)).dim
            fitting &= fitting_axes(dim, owners_by_gradient(dim, once, weighted, self._rounding))
            if not fitting:
                return "the loss of a sample has a gradient at other samples' places"
        if len(fitting) > 1:
            return "the order of the samples is unclear"
        return fitting.pop()

    def _smaller(self, position: int, tensor: Tensor, data: bool) -> torch.Size | None:
        """The shape of a tensor of a meeting in the pass on two samples."""
        two = self._found.two
        out = two.shapes[position - 1][0] if two.shapes[position - 1] else None
        if not data:
            return out
        meeting = two.meetings.get(position)
        if meeting is not None and meeting.data is not None:
            return meeting.data.shape
        three = self._found.three.shapes[position - 1][0]
        return out if tensor.shape == three else None

    def _fitting(
        self, two: torch.Size | None, tensor: Tensor, exchanged: Tensor
    ) -> set[SampleAxis]:
        """Where the samples can lie in one tensor of every pass, by the values there."""
        if two is None:  # what the batch of two did not show
            dims = [i for i, size in enumerate(tensor.shape) if size and size % SAMPLES == 0]
        else:
            grown = grown_dimension(two, tensor.shape)
            dims = [] if grown is None else [grown]
        moved = self._found.changed
        return {
            axis
            for dim in dims
            for axis in fitting_axes(
                dim, owners_by_value(dim, tensor, exchanged, moved, self._rounding)
            )
        }
