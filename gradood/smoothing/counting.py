"""From the results of a noisy batch to one row of numbers for each block of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradood import ops
from gradood.errors import InputError


class Block(NamedTuple):
    """Samples ``first`` to ``first + size - 1`` of the input in this row."""

    row: int
    first: int
    size: int


#: (Results of samples, the block of each, blocks) -> rows that can be added, ``[blocks, K]`` on the
#: CPU.
Counter: TypeAlias = "Callable[[Tensor, Tensor, Sequence[Block]], Tensor]"


def count_classes(logits: Tensor, owners: Tensor, blocks: Sequence[Block]) -> Tensor:
    """int64 ``[blocks, C + 1]``: first maxima, NaN last."""
    return _votes(logits, owners, "argmax", None, blocks)


def count_above(
    values: Tensor, owners: Tensor, blocks: Sequence[Block], *, threshold: float
) -> Tensor:
    """int64 ``[blocks, 2]``: scores above one threshold, and NaN."""
    # Compared as PyTorch does, in the precision of the scores; votes have that of float32.
    above = torch.where(values.isnan(), torch.nan, (values > threshold).float())
    limit = torch.tensor([0.5], dtype=torch.float32, device="cpu")
    return _votes(above, owners, "above", limit, blocks)


def count_unit(values: Tensor, owners: Tensor, blocks: Sequence[Block], *, edges: Tensor) -> Tensor:
    """int64 ``[blocks, K + 2]``: a histogram of scores in [0, 1] over fixed edges."""
    outside = values[(values < 0) | (values > 1)]
    if len(outside):
        raise InputError(
            f"the score is {float(outside[0]):g} on a noisy input; certify_mean needs scores "
            "in [0, 1]. Scale or clamp them, or use certify_quantile"
        )
    return _votes(_upwards(values), owners, "histogram", edges, blocks)


def count_between(
    values: Tensor, owners: Tensor, blocks: Sequence[Block], *, edges: Tensor
) -> Tensor:
    """int64 ``[blocks, K + 2]``: histograms over edges ``[N, K]`` of every input's own."""
    edges = edges[[block.row for block in blocks]].to(values.device, torch.float64)
    columns = edges.shape[1] + 2
    value = values.double()[:, None]
    column = torch.searchsorted(edges[owners], value)[:, 0]
    column = torch.where(value[:, 0].isnan(), columns - 1, column)
    flat = torch.bincount(owners * columns + column, minlength=len(blocks) * columns)
    return flat.view(len(blocks), columns).cpu()


def record(values: Tensor, owners: Tensor, blocks: Sequence[Block], *, n: int) -> Tensor:
    """float64 ``[blocks, n]``: the scores themselves, each in the column of its sample."""
    result = torch.zeros(len(blocks), n, dtype=torch.float64, device="cpu")
    parts = values.double().cpu().split([block.size for block in blocks])
    for row, block, part in zip(result, blocks, parts, strict=True):
        row[block.first : block.first + block.size] = part
    return result


def _votes(
    values: Tensor, owners: Tensor, mode: str, thresholds: Tensor | None, blocks: Sequence[Block]
) -> Tensor:
    thresholds = None if thresholds is None else thresholds.to(values.device)
    votes: Tensor = ops.vote_count(values, owners, mode, thresholds, len(blocks))
    return votes.cpu()


def _upwards(values: Tensor) -> Tensor:
    """float32 values rounded up, so that a histogram does not understate float64 ones."""
    single = values.float()
    return torch.where(single < values, torch.nextafter(single, torch.ones_like(single)), single)
