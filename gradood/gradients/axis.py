"""Find where the samples of a batch lie in a tensor: by experiment, never from a size alone.

Models move and merge the batch dimension (``[T, N, D]`` inside attention, ``[N · windows, T, D]``
in Swin), so an operator's input does not say which rows belong to which sample. The probe runs a
model on two and on three samples: the dimension that grows holds them. Which entries of it belong
to which sample is told by what changes when other samples are exchanged, and by whose loss has a
gradient there. Both are compared exactly, so that no influence is too small to be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: The samples of a probe.
SAMPLES = 3
#: What their losses are multiplied by in the second backward pass: powers of two, so that the
#: gradients of independent samples are multiplied by exactly the same.
WEIGHTS = (1.0, 2.0, 4.0)

#: In half precision no gradient is exact.
_HALF_ROUNDING = 0.02
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class SampleAxis(NamedTuple):
    """Dimension ``dim`` has ``outer · N · inner`` entries; entry i belongs to (i // inner) % N."""

    dim: int
    outer: int
    inner: int

    @property
    def merged(self) -> bool:
        """Whether the dimension has more than one entry per sample."""
        return self.outer * self.inner > 1

    def fits(self, shape: torch.Size, samples: int) -> bool:
        """Whether a tensor of this shape can hold this many samples."""
        return self.dim < len(shape) and shape[self.dim] == self.outer * samples * self.inner

    def split(self, tensor: Tensor, samples: int) -> Tensor:
        """View as ``[N, …]``; what the dimension holds beside the samples stays in its place."""
        if not self.merged:
            return tensor.movedim(self.dim, 0) if self.dim else tensor
        sizes = (self.outer, samples, self.inner)
        tensor = tensor.unflatten(self.dim, sizes).movedim(self.dim + 1, 0)
        return tensor.flatten(self.dim + 1, self.dim + 2)


def grown_dimension(two: torch.Size, three: torch.Size) -> int | None:
    """The only dimension that grew by 3 / 2 from two samples to three; None if there is none."""
    if len(two) != len(three):
        return None
    grown = [i for i, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    if len(grown) != 1 or 3 * two[grown[0]] != 2 * three[grown[0]]:
        return None
    return grown[0]


def fitting_axes(dim: int, owners: Tensor) -> set[SampleAxis]:
    """Every way in which dimension ``dim`` may hold the samples.

    ``owners`` ``[entries, SAMPLES]`` says whose an entry may be.
    """
    size = owners.shape[0]
    entries, place = size // SAMPLES, torch.arange(size, dtype=torch.int64, device="cpu")
    return {
        SampleAxis(dim, entries // inner, inner)
        for inner in range(1, entries + 1)
        if entries % inner == 0 and bool(owners[place, (place // inner) % SAMPLES].all())
    }


def owners_by_value(
    dim: int, tensor: Tensor, changed: Tensor, exchanged: Sequence[bool], rounding: float
) -> Tensor:
    """Whose the entries along ``dim`` may be, ``[entries, SAMPLES]``.

    ``changed`` is the same tensor after the samples in ``exchanged`` were: what differs is theirs.
    """
    if tensor.shape != changed.shape:
        return torch.zeros(tensor.shape[dim], SAMPLES, dtype=torch.bool, device="cpu")
    if rounding:
        moved = _along(dim, differs(tensor, changed, rounding))
    else:
        moved = _along(dim, _bits(tensor) != _bits(changed))
    return ~moved[:, None] | torch.tensor(exchanged, dtype=torch.bool, device="cpu")


def owners_by_gradient(dim: int, once: Tensor, weighted: Tensor, rounding: float) -> Tensor:
    """Whose the entries along ``dim`` may be, ``[entries, SAMPLES]``.

    ``once`` is the gradient of the sum of all samples' losses, ``weighted`` that of the sum with
    ``WEIGHTS``: what belongs to one sample, and to no other, is multiplied by its weight.
    """
    kind = torch.finfo(once.dtype)
    # Smaller numbers are not exact when they are multiplied, or something before them was not.
    normal = kind.tiny if once.element_size() < 4 else kind.tiny / kind.eps
    known = torch.maximum(once.abs(), weighted.abs()) >= normal
    if rounding or once.element_size() < 4:
        rounding = max(rounding, _HALF_ROUNDING if once.element_size() < 4 else 0.0)
        return torch.stack(
            [~_along(dim, differs(once * w, weighted, rounding) & known) for w in WEIGHTS], 1
        )
    share = weighted / once
    others = [i for i in range(once.dim()) if i != dim]
    least = share.where(known, torch.inf)
    most = share.where(known, -torch.inf)
    if others:
        least, most = least.amin(others), most.amax(others)
    weights = torch.tensor(WEIGHTS, dtype=least.dtype, device="cpu")
    least, most = least.cpu()[:, None], most.cpu()[:, None]
    return ((least == weights) & (most == weights)) | (least > most)


def differs(a: Tensor, b: Tensor, rounding: float = 0.0) -> Tensor:
    """Elementwise: do two tensors differ by more than a fraction of the largest element?"""
    different = (a != b) & ~(a.isnan() & b.isnan())
    if rounding and (a.is_floating_point() or a.is_complex()) and a.numel():
        scale = a.abs().nan_to_num(0.0, 0.0, 0.0).max()
        different &= ~((a - b).abs() <= rounding * scale)
    return different


def _bits(tensor: Tensor) -> Tensor:
    """Floating-point numbers as the integers of their bits, so that NaN equals itself."""
    kind = _INTEGERS.get(tensor.element_size())
    return tensor if kind is None or not tensor.is_floating_point() else tensor.view(kind)


def _along(dim: int, elements: Tensor) -> Tensor:
    """For every entry along ``dim``: is any element true?"""
    return elements.movedim(dim, 0).reshape(elements.shape[dim], -1).any(1).cpu()
