"""Where the samples of a batch lie in a tensor: found by experiment, never guessed from a size.

Models move and merge the batch dimension (``[T, N, D]`` inside attention, ``[N · windows, T, D]``
in Swin), so an operator's input does not say which rows belong to which sample. The probe runs a
model on two and on three samples, and on three of which one is changed, each in turn: the dimension
that grew holds the samples, and the elements that changed belong to the one that did.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Changes below this share of the largest magnitude are rounding.
_ROUNDING = 1e-5


class SampleAxis(NamedTuple):
    """Dimension ``dim`` has ``outer · N · inner`` entries; entry i is of (i // inner) % N."""

    dim: int
    outer: int
    inner: int

    @property
    def merged(self) -> bool:
        """Whether the dimension holds more than one entry a sample."""
        return self.outer * self.inner > 1

    def fits(self, shape: torch.Size, samples: int) -> bool:
        """Whether a tensor of this shape can hold so many samples."""
        return self.dim < len(shape) and shape[self.dim] == self.outer * samples * self.inner

    def split(self, tensor: Tensor, samples: int) -> Tensor:
        """View as ``[N, …]``; what the dimension holds beside the samples stays in its place."""
        if not self.merged:
            return tensor.movedim(self.dim, 0) if self.dim else tensor
        sizes = (self.outer, samples, self.inner)
        tensor = tensor.unflatten(self.dim, sizes).movedim(self.dim + 1, 0)
        return tensor.flatten(self.dim + 1, self.dim + 2)


def grown_dimension(two: torch.Size, three: torch.Size) -> int | None:
    """The one dimension that grew in the proportion of three samples to two, if there is one."""
    if len(two) != len(three):
        return None
    grown = [i for i, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    if len(grown) != 1 or 3 * two[grown[0]] != 2 * three[grown[0]]:
        return None
    return grown[0]


def fitting_axes(dim: int, tensor: Tensor, changed: Tensor, sample: int) -> set[SampleAxis]:
    """Every way in which dimension ``dim`` of ``tensor``, of three samples, may hold them.

    ``changed`` is the same tensor after one sample changed: where they differ must belong to it.
    """
    if tensor.shape != changed.shape:
        return set()
    moved = differs(tensor, changed).movedim(dim, 0).reshape(tensor.shape[dim], -1).any(1).cpu()
    entries = moved.shape[0] // 3
    place = torch.arange(moved.shape[0])
    return {
        SampleAxis(dim, entries // inner, inner)
        for inner in range(1, entries + 1)
        if entries % inner == 0 and not bool(moved[(place // inner) % 3 != sample].any())
    }


def differs(a: Tensor, b: Tensor, rounding: float = _ROUNDING) -> Tensor:
    """Element by element, whether two tensors differ by more than a share of the largest."""
    if not a.is_floating_point() and not a.is_complex():
        return a != b
    scale = a.abs().nan_to_num(0.0, 0.0, 0.0).max() if a.numel() else 0.0
    both_nan = a.isnan() & b.isnan()
    return ~((a - b).abs() <= rounding * scale) & ~both_nan & (a != b)
