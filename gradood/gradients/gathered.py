"""Gradients of a table whose rows a model gathers: ``Σ_{i: index_i = r} g_i``, samples together.

Relative position biases are such: a table ``[R, H]`` indexed by ``[T²]`` constants. Autograd's own
derivative of the indexing, batched, adds numbers one at a time; here whole rows are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge


def through_rows(live: Tensor, leaf: Tensor, gradient: Tensor) -> Tensor | None:
    """Turn gradients ``[N, …]`` of a tensor into those of the leaf whose rows it gathers.

    Args:
        live: What was made of ``leaf[index]`` by operators with one input that needs a gradient.
        leaf: The table.
        gradient: Per-sample gradients of ``live``.

    Returns:
        ``[N, *leaf.shape]``; None where the graph is no such chain.
    """
    node: Any = live.grad_fn
    index: Tensor | None = None
    while node is not None and (index := _rows(node)) is None:
        if len(node.next_functions) != 1:
            return None
        node = node.next_functions[0][0]
    if index is None or getattr(node.next_functions[0][0], "variable", None) is not leaf:
        return None
    moved = _moved_back(live.grad_fn, node, gradient)
    if moved is None:
        (moved,) = torch.autograd.grad(
            live,
            [GradientEdge(node, 0)],
            gradient,
            retain_graph=True,
            is_grads_batched=True,
        )
    rows = moved.reshape(len(moved), index.numel(), *leaf.shape[1:])
    index = index.reshape(-1).remainder(len(leaf))
    if rows.dim() == 3 and rows.stride(1) == 1:  # a number after the other is in another row
        columns = rows.new_zeros(len(rows), rows.shape[2], len(leaf))
        return columns.index_add_(2, index, rows.transpose(1, 2)).transpose(1, 2)
    return rows.new_zeros(len(rows), *leaf.shape).index_add_(1, index, rows)


def _moved_back(node: Any, end: Any, gradient: Tensor) -> Tensor | None:
    """Undo what lies before ``end`` for all samples at once, if elements are only moved about.

    Autograd does the same with a batch, but one pass of it costs as much as adding the rows.
    """
    while node is not end:
        undo = _UNDO.get(node.name())
        if undo is None:
            return None
        gradient = undo(gradient, node)
        node = node.next_functions[0][0]
    return gradient


def _viewed(gradient: Tensor, node: Any) -> Tensor:
    return gradient.reshape(len(gradient), *node._saved_self_sym_sizes)


def _permuted(gradient: Tensor, node: Any) -> Tensor:
    places = [_signed(dim) % (gradient.dim() - 1) for dim in node._saved_dims]
    return gradient.permute(0, *(1 + places.index(dim) for dim in range(len(places))))


def _transposed(gradient: Tensor, node: Any) -> Tensor:
    first, second = (_after_samples(d) for d in (node._saved_dim0, node._saved_dim1))
    return gradient.transpose(first, second)


def _squeezed(gradient: Tensor, node: Any) -> Tensor:
    return gradient.squeeze(_after_samples(node._saved_dim))


def _signed(dim: int) -> int:
    """A dimension that autograd shows without its sign."""
    return dim - (1 << 64) if dim >> 63 else dim


def _after_samples(dim: int) -> int:
    dim = _signed(dim)
    return dim if dim < 0 else dim + 1


_UNDO: dict[str, Callable[[Tensor, Any], Tensor]] = {
    **dict.fromkeys(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"), _viewed),
    "CloneBackward0": lambda gradient, _: gradient,
    "PermuteBackward0": _permuted,
    "TransposeBackward0": _transposed,
    "UnsqueezeBackward0": _squeezed,
}


def _rows(node: Any) -> Tensor | None:
    """By what a node of a graph indexes the first dimension, if it does that alone."""
    indices: tuple[Tensor | None, ...] = ()
    if node.name() == "IndexBackward0":
        indices = node._saved_indices
    elif node.name() == "IndexSelectBackward0" and node._saved_dim == 0:
        indices = (node._saved_index,)
    index = indices[0] if len(indices) == 1 else None
    if index is None or index.device.type != "cpu":
        return None
    return index if index.dtype in (torch.int64, torch.int32) else None
