"""Norms of standardised weights without their gradients: ``W_p = γ_p (w_p − μ_p) r_p`` by row.

With ``ŵ = (w − μ) r``, ``G`` the per-sample gradient of W and F elements a row, PyTorch's batch
norm turns G into ``γ r (G − Ḡ − ŵ (G·ŵ) / F)``, whose squared norm is a sum over rows of

    (γ r)² (‖G‖² − (G·1)² / F − (2 − v) (G·ŵ)² / F),    v = ‖ŵ‖² / F = 1 − eps r².

The first term is the convolution's own rule with γ r d for d. The others are convolutions, with 1
and ŵ for weights, multiplied by d: ``G·a = Σ_t d_t (x ∗ a)_t``. So G is never formed. With ŵ it is
the convolution of the forward pass, ``y = γ (x ∗ ŵ) + b``, whose output may still be there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional

from gradood import ops
from gradood.gradients.rules import Call
from gradood.gradients.rules.conv import ConvCall
from gradood.gradients.source import Source, graph_leaves_of
from gradood.ops.row_norms import row_sqnorm

#: Where less than this share of the first term is left, rounding shows: form the gradient.
_LEAST = 0.05
#: Bytes of a convolution's output held at once.
_CHUNK = 8 << 20
#: How much larger than y's other part the bias may be, whose rounding y has.
_BIAS = 16.0
_through_relu = partial(torch.ops.aten.threshold_backward.default, threshold=0)
_RESHAPES = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")
_MULTIPLIED = (*_RESHAPES, "MulBackward0")
_CONVOLUTIONS = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}


@dataclass
class Standardised:
    """How a weight was standardised: read from the graph of what the model made of it."""

    leaf: Tensor
    #: The weight W.
    value: Tensor
    #: ``μ``, ``r`` and ``γ``, ``[P]`` each.
    mean: Tensor
    rstd: Tensor
    scale: Tensor
    #: ``v`` above.
    spread: Tensor
    #: Where the scale came from, if from parameters.
    edge: GradientEdge | None

    @property
    def normalised(self) -> Tensor:
        """``ŵ`` in the shape of the weight."""
        by_row = (-1, *[1] * (self.leaf.dim() - 1))
        return (self.leaf.detach() - self.mean.view(by_row)) * self.rstd.view(by_row)


def standardised(source: Source) -> Standardised | None:
    """How a source was made, if by one batch norm over the rows of one parameter."""
    live = source.live
    node: Any = live.grad_fn
    while node is not None and node.name() in _RESHAPES:
        node = node.next_functions[0][0]
    if node is None or node.name() != "NativeBatchNormBackward0" or not node._saved_training:
        return None
    (below, _), (scaled, place), (shift, _) = node.next_functions
    while below is not None and below.name() in _RESHAPES:
        below = below.next_functions[0][0]
    leaf = getattr(below, "variable", None)
    rows = node._saved_input
    if leaf is None or shift is not None or live.shape != leaf.shape or rows.dim() != 3:
        return None
    whole = leaf.is_contiguous() and live.is_contiguous() and rows.is_contiguous()
    if not whole or rows.data_ptr() != leaf.data_ptr() or rows.shape[:2] != (1, len(leaf)):
        return None
    if scaled is not None and any(other is leaf for other in graph_leaves_of(scaled)):
        return None
    mean, rstd = node._saved_result1, node._saved_result2
    scale = torch.ones_like(rstd) if node._saved_weight is None else node._saved_weight.detach()
    edge = None if scaled is None else GradientEdge(scaled, place)
    spread = 1 - node._saved_eps * rstd**2
    return Standardised(leaf, live.detach(), mean, rstd, scale, spread, edge)


def _through_scale(edge: GradientEdge, leaf: Tensor, gradient: Tensor) -> Tensor:
    """Turn gradients ``[N, P]`` of the scale into those of a parameter that it was made of."""
    slope = _slope(edge.node, leaf) if leaf.numel() == gradient.shape[1] else None
    if slope is not None and slope.numel() in (1, leaf.numel()):
        return gradient * slope
    (pulled,) = torch.autograd.grad(
        *([edge], [leaf], [gradient]), retain_graph=True, is_grads_batched=True
    )
    return pulled.flatten(1)


def _slope(node: Any, leaf: Tensor) -> Tensor | None:
    """What a parameter is multiplied by, where nothing else happens to it."""
    slope = None
    while node is not None and node.name() in _MULTIPLIED:
        parents = [parent for parent, _ in node.next_functions]
        if node.name() == "MulBackward0":
            place = 0 if parents[0] is not None else 1
            if parents[1 - place] is not None:
                return None  # a product of two that depend on parameters
            factor = (node._saved_other, node._saved_self)[place].flatten().to(leaf.dtype)
            slope = factor if slope is None else slope * factor
        else:
            place = 0
        node = parents[place]
    if slope is None:
        slope = torch.ones(1, dtype=leaf.dtype, device=leaf.device)
    return slope if getattr(node, "variable", None) is leaf else None


class StandardisedUse:
    """The one convolution that a standardised weight goes through, in one backward pass."""

    def __init__(self, call: ConvCall, x: Tensor, d: Tensor, made: Standardised) -> None:
        self.call, self.x, self.d, self.made = call, x, d, made
        self._inner: Tensor | None = None

    @classmethod
    def of(
        cls, call: Call, role: str, x: Tensor | None, d: Tensor, source: Source
    ) -> StandardisedUse | None:
        """The use, if the formula covers it."""
        covered = type(call) is ConvCall and role == "weight" and not call.axis.merged
        if not covered or x is None or x.dtype != d.dtype or d.dtype != source.live.dtype:
            return None
        if x.dtype not in (torch.float32, torch.float64) or x.numel() * d.numel() == 0:
            return None
        made = standardised(source)
        assert isinstance(call, ConvCall)
        return None if made is None else cls(call, x, d, made)

    def norm(self, leaf: Tensor) -> tuple[Tensor, list[int]] | None:
        """Squared norms ``[N]`` of a parameter behind the weight, and of which samples none."""
        made = self.made
        inner = self._products()
        if leaf is not made.leaf:
            if made.edge is None:
                return None
            return row_sqnorm(_through_scale(made.edge, leaf, inner)), []
        factor = made.scale * made.rstd
        spatial = (1,) * (self.d.dim() - 2)
        whole, _ = ops.conv_sqnorm(
            self.x, self.d * factor.view(-1, *spatial), *self.call.geometry, False
        )
        rows = self._sums().square() + inner.square() * (2 - made.spread)
        norm = whole - rows @ (factor.square() / made.leaf[0].numel())
        return norm, (norm < _LEAST * whole).nonzero().flatten().tolist()

    def _products(self) -> Tensor:
        """``G·ŵ`` ``[N, P]``, the same for every parameter behind the weight."""
        if self._inner is None:
            made, groups = self.made, self.call.geometry.groups
            if not bool(made.scale.all()):
                self._inner = self._against(self.x, made.normalised, groups)
            else:  # W is γ ŵ
                inner = self._against_output()
                inner = self._against(self.x, made.value, groups) if inner is None else inner
                self._inner = inner / made.scale
        return self._inner

    def _against_output(self) -> Tensor | None:
        """``Σ_t d_t (y_t − b)``, if the output is at hand and tells as much as computing it."""
        output = self.call.result
        y = None if output is None else output.value()
        if output is None or y is None or y.shape != self.d.shape or y.dtype != self.d.dtype:
            return None
        parts = []
        for ys, ds in zip(y.split(self._step), self.d.split(self._step), strict=True):
            if output.rectified and not torch.equal(_through_relu(ds, ys), ds):
                return None  # something else than the ReLU read y
            parts.append((ds * ys).flatten(2).sum(2))
        products = torch.cat(parts) if len(parts) > 1 else parts[0]
        bias = self.call.operands.get("bias")
        if bias is None:
            return products
        d = self.d.flatten(2)
        products = products - d.sum(2) * bias.detach()
        # Of y, the bias is rounded, too: at most Σ_t |d_t| ≤ √T ‖d‖ times that shows.
        rounded = torch.linalg.vector_norm(d, dim=2) * (bias.detach() / self.made.scale)
        rounded = torch.linalg.vector_norm(rounded, dim=1) * d.shape[2] ** 0.5
        exact = torch.linalg.vector_norm(products / self.made.scale, dim=1)
        return None if bool((rounded > _BIAS * exact).any()) else products

    @property
    def _step(self) -> int:
        """Samples that are multiplied at once."""
        return max(1, _CHUNK // (self.d[0].numel() * self.d.element_size()))

    def _sums(self) -> Tensor:
        """``G·1``: all channels of a group weigh the same, so they are added first."""
        groups = self.call.geometry.groups
        x = self.x.sum(1, keepdim=True) if groups == 1 else self.x.unflatten(1, (groups, -1)).sum(2)
        ones = x.new_ones(groups, 1, *self.call.geometry.kernel_size)
        return self._against(x, ones, groups)

    def _against(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """``Σ_t d_t (x ∗ weight)_t``; output channels of a group may share one row of weights."""
        parts = []
        for xs, ds in zip(x.split(self._step), self.d.split(self._step), strict=True):
            out = self._convolved(xs, weight, groups).unflatten(1, (groups, -1)).flatten(3)
            ds = ds.reshape(len(ds), groups, -1, out.shape[3])
            if out.shape[2] == 1:
                products = torch.matmul(ds, out.transpose(2, 3)).squeeze(3)
            else:
                products = (out * ds).sum(3)
            parts.append(products.flatten(1))
        return torch.cat(parts)

    def _convolved(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """``x ∗ weight``; a kernel of size one is one product over the pixels of all samples."""
        kernel, stride, padding, dilation, _ = self.call.geometry
        if prod(kernel) > 1 or any(padding) or groups > 1:
            convolve = _CONVOLUTIONS[x.dim() - 2]
            return convolve(x, weight, None, stride, padding, dilation, groups)
        every = (slice(None), slice(None), *(slice(None, None, s) for s in stride))
        seen = x[every].transpose(0, 1)
        rows, inputs = weight.shape[:2]
        # oneDNN's own takes ten times as long for few pixels a sample.
        out = torch.mm(weight.reshape(rows, inputs), seen.reshape(inputs, -1))
        return out.view(rows, *seen.shape[1:]).transpose(0, 1)
