"""Operators that pick places in a tensor by values: sorting, gathering, masks, packed sequences.

Where the values come from the batch, the place of a sample differs from batch to batch, and no
probe can tell where it will be next time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from gradood.gradients.capture import flatten

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
#: Operators that may move any element anywhere.
_ANYWHERE = {
    "masked_select", "masked_scatter", "take", "put", "index_put", "unique", "unique_consecutive",
    "_pack_padded_sequence", "tolist", "numpy",
}  # fmt: skip


def picked_dimensions(
    name: str, args: Any, kwargs: Any, depends: Callable[[object], bool]
) -> set[int]:
    """Dimensions of the first argument in which values of the batch pick the places."""
    first, *rest = args if args else [None]
    if not isinstance(first, Tensor):
        return set()
    if name in ("__getitem__", "__setitem__"):
        moves = name == "__getitem__" or depends(rest[1])  # constants written are no samples
        return set(_indexed(first, rest[0], depends)) if moves else set()
    name = name.removesuffix("_") if name != "_pack_padded_sequence" else name
    picking = [first] if name in _BY_VALUE else [*rest, *kwargs.values()]
    if not any(map(depends, flatten(picking))):
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
    """How many dimensions one part of an index takes up."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    if isinstance(part, Tensor) and not part.is_floating_point() and part.element_size() == 1:
        return part.dim()  # a mask
    return 1
