"""Gradients of a table whose rows a model gathers: ``Σ_{i: index_i = r} g_i``, samples together.

Relative position biases are such: a table ``[R, H]`` indexed by ``[T²]`` constants. Autograd's own
derivative of the indexing, batched, adds numbers one at a time; here whole rows are added.
"""

from __future__ import annotations

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
    if node is not live.grad_fn:
        (gradient,) = torch.autograd.grad(
            live,
            [GradientEdge(node, 0)],
            gradient,
            retain_graph=True,
            is_grads_batched=True,
        )
    rows = gradient.reshape(len(gradient), index.numel(), *leaf.shape[1:])
    total = rows.new_zeros(len(gradient), *leaf.shape)
    return total.index_add_(1, index.reshape(-1).remainder(len(leaf)), rows)


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
