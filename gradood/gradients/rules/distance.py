"""Distances to prototypes: ``torch.cdist``, in layers of prototypes and radial basis functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradood.gradients.axis import SampleAxis
from gradood.gradients.rules.broadcast import plain
from gradood.gradients.rules.call import Call
from gradood.gradients.rules.linear import tokens
from gradood.gradients.source import is_source
from gradood.ops.row_norms import row_sqnorm


class DistanceCall(Call):
    """``y_tp = ‖x_t - w_p‖``: the gradient of row p is ``Σ_t d_tp (w_p - x_t) / y_tp``.

    It is zero where a distance is. For one token a sample its norm is ``Σ_p d_p²``.
    """

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        self.data = x
        self.operands = {"weight": weight}

    @classmethod
    def bind(
        cls,
        function: Callable[..., Any],
        x1: Tensor,
        x2: Tensor,
        p: float = 2.0,
        *_: Any,
        **__: Any,
    ) -> Call | str:
        if p != 2 or is_source(x1) or x1.dim() < 2 or x2.dim() != 2:
            return "only Euclidean distances of a batch to rows of a matrix have a rule"
        return cls(x1, x2)

    def refuses(self, axis: SampleAxis) -> str | None:
        assert self.data is not None
        last = axis.dim == self.data.dim() - 1
        return "the samples lie along the features" if last else None

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        assert x is not None
        if tokens(x).shape[1] > 1:
            return {"weight": row_sqnorm(self.gradient(x, d, "weight"))}
        apart = self._distances(tokens(x).to(d.dtype)) > 0
        return {"weight": row_sqnorm(tokens(d) * apart)}

    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        assert x is not None
        x, d = tokens(x).to(d.dtype), tokens(d)
        distances = self._distances(x)
        shares = torch.where(distances > 0, d / distances, 0)
        weight = plain(self.operands["weight"]).to(d.dtype)
        total = d.new_zeros(len(d), *weight.shape)
        # Differences token by token: sums of w and of x would cancel where x is near w.
        for share, row in zip(shares.unbind(1), x.unbind(1), strict=True):
            total += share[..., None] * (weight - row[:, None])
        return total

    def _distances(self, x: Tensor) -> Tensor:
        """``[N, T, P]``, by differences and not by products, which would lose small ones."""
        weight = plain(self.operands["weight"]).to(x.dtype)
        return torch.cdist(x, weight, compute_mode="donot_use_mm_for_euclid_dist")


RULES: dict[Callable[..., Any], type[Call]] = {torch.cdist: DistanceCall}
