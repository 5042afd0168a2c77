"""Choose three samples to probe a model with: the caller's own, or similar ones if too few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: At most this many rows are searched for three that differ.
LOOKED_AT = 16


class Rows(NamedTuple):
    """Three samples ``[3, …]``, and whether they were made up."""

    x: Tensor
    made_up: bool

    def changed(self, order: Sequence[int]) -> tuple[bool, ...]:
        """Which of the three places hold another sample once the samples are put in ``order``."""
        return tuple(not torch.equal(self.x[i], row) for i, row in zip(order, self.x, strict=True))


def candidates(x: Tensor) -> Iterator[Rows]:
    """Threes of samples to try in turn, until the model takes one; the last are all alike.

    The caller's own rows come first: they lie in the model's domain, with every category in the
    column it belongs to and padding where it may be. Where all rows are alike, neighbours of the
    first are made up: a little nearer to zero, then a little farther, then permuted.
    """
    found = _unlike(x)
    if len(found) > 1:
        yield Rows(torch.cat([*found, found[-1]][:3]), False)
        return
    for change in _CHANGES:
        if x.is_cuda and change is _permuted and not x.is_floating_point():
            continue  # an index out of range would make the GPU unusable for the process
        rows = torch.cat([x[:1], *(change(x[:1], seed) for seed in (1, 2))])
        if not all(torch.equal(row, x[0]) for row in rows[1:]):
            yield Rows(rows, True)
    yield Rows(x[[0, 0, 0]], False)


def _unlike(x: Tensor) -> list[Tensor]:
    found = [x[:1]]
    for i in range(1, min(len(x), LOOKED_AT)):
        if not any(torch.equal(x[i], other[0]) for other in found):
            found.append(x[i : i + 1])
            if len(found) == 3:
                break
    return found


def _nearer(row: Tensor, seed: int) -> Tensor:
    if row.is_floating_point() or row.is_complex():
        return row * (1 - _noise(row, seed) / 16)
    if row.dtype == torch.bool:
        return row.logical_and(_noise(row, seed) < 0.75)
    return torch.where((row > 1) & (_noise(row, seed) < 0.75), row - 1, row)


def _farther(row: Tensor, seed: int) -> Tensor:
    if row.is_floating_point() or row.is_complex():
        noise = _noise(row, seed) / 16
        return row * (1 + noise) + noise * (row == 0)  # rows of zeros need neighbours as well
    return row


def _permuted(row: Tensor, seed: int) -> Tensor:
    if row.is_floating_point() or row.is_complex():
        return row
    return row.flatten().roll(seed).view_as(row)


_CHANGES: tuple[Callable[[Tensor, int], Tensor], ...] = (_nearer, _farther, _permuted)


def _noise(row: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dtype = row.dtype if row.is_floating_point() else torch.float32
    noise = torch.rand(row.shape, generator=generator, dtype=torch.float32, device="cpu")
    return noise.to(row.device, dtype)
