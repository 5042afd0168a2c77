"""Operators under ``torch.func.vmap``: the samples of all batches are merged into one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gradood.errors import InputError


def merging(name: str, operator: Callable[..., Any], sample_tensors: int) -> Callable[..., Any]:
    """The vmap rule of an operator whose first tensors hold samples along dimension 0.

    Other tensors, such as statistics of a channel, are common to all samples of a call.
    """

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        size = info.batch_size
        if any(isinstance(dim, int) for dim in in_dims[sample_tensors:]):  # lists have lists
            raise InputError(
                f"vmap over {name}: only its first {sample_tensors} arguments may have the mapped "
                "dimension, the others are common to all samples; call it once for each"
            )
        pairs = zip(args[:sample_tensors], in_dims, strict=False)
        merged = [_merged(t, dim, size) for t, dim in pairs]
        results = operator(*merged, *args[sample_tensors:])
        if isinstance(results, Tensor):
            return _split(results, size), 0
        return tuple(_split(r, size) for r in results), (0,) * len(results)

    return rule


def _merged(t: Tensor, dim: int | None, size: int) -> Tensor:
    """``[size · N, …]``."""
    t = t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.flatten(0, 1)


def _split(t: Tensor, size: int) -> Tensor:
    """``[size, N, …]``; an absent norm has no samples."""
    return t.view(size, t.shape[0] // size, *t.shape[1:])
