"""Operators that select positions of a tensor by values: sorting, gathering, masks, packing.

Where the values come from the batch, the place of a sample differs from batch to batch, and no
probe can tell where it will be next time: unless a mask takes as much of every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradood.gradients.arguments import tensors_in

#: Operators that work along one dimension: where it stands among their arguments, and its default.
_ALONG = {
    "gather": (1, None),
    "index_select": (1, None),
    "index_add": (1, None),
    "index_copy": (1, None),
    "index_fill": (1, None),
    "index_reduce": (1, None),
    "scatter": (1, None),
    "scatter_add": (1, None),
    "scatter_reduce": (1, None),
    "take_along_dim": (2, None),
    "sort": (1, -1),
    "topk": (2, -1),
    "msort": (9, 0),
}
#: These pick by the values of their first argument, the others by those of their other arguments.
_BY_VALUE = {"sort", "topk", "msort", "unique", "unique_consecutive", "tolist", "numpy"}
#: These return Python numbers, whose later effect cannot be followed.
NUMBERS = {"tolist", "numpy", "item", "__int__", "__index__", "__float__"}
#: Operators that may move any element to any position.
_ANYWHERE = {
    "masked_select", "masked_scatter", "take", "put", "index_put", "unique", "unique_consecutive",
    "_pack_padded_sequence", "tolist", "numpy",
}  # fmt: skip


class Pick(NamedTuple):
    """What an operator selects from its first argument by values of the batch."""

    shape: torch.Size
    #: The dimensions along which values select positions.
    dims: frozenset[int]
    #: How many elements a mask picks from every entry of dimension 0, if from all as many.
    even: int | None


def pick(name: str, args: Any, kwargs: Any, depends: Callable[[object], bool]) -> Pick | None:
    """What an operator selects by values of the batch; None if it does not."""
    dims = _picked_dimensions(name, args, kwargs, depends)
    return Pick(args[0].shape, frozenset(dims), picked_evenly(args)) if dims else None


def picked_evenly(args: Any) -> int | None:
    """How many elements of every entry of dimension 0 an index that begins with a mask picks.

    None where there is no such index, or where they are not as many of each.
    """
    index = args[1] if len(args) > 1 else None
    mask, *rest = index if isinstance(index, tuple) and index else (index,)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not mask.dim() or len(mask) == 0:
        return None
    if any(isinstance(part, Tensor) for part in rest):
        return None
    counts = mask.flatten(1).sum(1) if mask.dim() > 1 else mask.to(torch.int64)
    first = int(counts[0])
    return first if bool((counts == first).all()) else None


def _picked_dimensions(
    name: str, args: Any, kwargs: Any, depends: Callable[[object], bool]
) -> set[int]:
    first, *rest = args if args else [None]
    if not isinstance(first, Tensor):
        return set()
    if name in ("__getitem__", "__setitem__"):
        moves = name == "__getitem__" or depends(
            rest[1]
        )  # constants that are written hold no samples
        return set(_indexed(first, rest[0], depends)) if moves else set()
    name = name.removesuffix("_") if name != "_pack_padded_sequence" else name
    if name not in _ANYWHERE and name not in _ALONG:
        return set()
    picking = [first] if name in _BY_VALUE else [*rest, *kwargs.values()]
    if not any(map(depends, tensors_in(picking))):
        return set()
    if name in _ANYWHERE:
        return set(range(first.dim()))
    if name in _ALONG:
        place, default = _ALONG[name]
        dim = kwargs.get("dim", args[place] if len(args) > place else default)
        return set(range(first.dim())) if dim is None else {dim % max(first.dim(), 1)}
    return set()


def _indexed(t: Tensor, index: Any, depends: Callable[[object], bool]) -> Iterator[int]:
    """The dimensions of ``t`` that ``t[index]`` indexes by tensors which depend on the batch."""
    parts = index if isinstance(index, tuple) else (index,)
    taken = sum(_width(part) for part in parts)
    dim = 0
    for part in parts:
        if part is Ellipsis:
            dim += t.dim() - taken
            continue
        if depends(part):
            yield from range(dim, dim + _width(part))
        dim += _width(part)


def _width(part: Any) -> int:
    """The number of dimensions that one part of an index consumes."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    if isinstance(part, Tensor) and not part.is_floating_point() and part.element_size() == 1:
        return part.dim()  # a mask
    return 1
