"""Table look-ups: ``embedding``, ``index_select`` and indexing by one integer tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from gradood import ops
from gradood.errors import ModelError
from gradood.gradients.rules.call import Call
from gradood.gradients.rules.copies import CopyCall
from gradood.gradients.source import is_source


class EmbeddingCall(Call):
    """``y_t = W[i_t]``: the gradient of row v is ``Σ_{t: i_t = v} d_t``."""

    #: Also those of calls that index in another way.
    needs_data: ClassVar[frozenset[str]] = frozenset({"weight", *CopyCall.needs_data})
    defers = True

    def __init__(
        self, indices: Tensor, weight: Tensor, padding_idx: int = -1, by_frequency: bool = False
    ) -> None:
        self.data = indices
        self.operands = {"weight": weight}
        self.padding_idx = padding_idx
        self.by_frequency = by_frequency

    @classmethod
    def bind(cls, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call | str:
        if function is functional.embedding:
            return cls._bind_embedding(*args, **kwargs)
        if function is Tensor.__getitem__:
            weight, index = args
            rows = isinstance(index, Tensor) and not (
                index.is_floating_point() or index.dtype in (torch.bool, torch.uint8)
            )
            if rows and is_source(weight):
                return cls(index, weight)
        elif not kwargs and len(args) == 3 and args[1] in (0, -args[0].dim()):
            return cls(args[2], args[0])
        return CopyCall.bind(function, *args, **kwargs)

    @classmethod
    def _bind_embedding(
        cls,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Call | str:
        if padding_idx is None:
            padding_idx = -1
        elif padding_idx < 0:
            padding_idx += weight.shape[0]
        return cls(input, weight, padding_idx, scale_grad_by_freq)

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        indices, d = self._arrange(x, d)
        return {"weight": ops.embedding_sqnorm(indices, d, self.padding_idx)}

    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        indices, d = self._arrange(x, d)
        d = d.masked_fill((indices == self.padding_idx)[..., None], 0)
        weight = self.operands["weight"]
        total = d.new_zeros(d.shape[0], len(weight), d.shape[2])
        total.scatter_add_(1, indices[..., None].expand_as(d), d)
        return total.view(d.shape[0], *weight.shape)

    def _arrange(self, x: Tensor | None, d: Tensor) -> tuple[Tensor, Tensor]:
        assert x is not None
        indices = x.reshape(x.shape[0], -1)
        indices = indices.where(indices >= 0, indices + len(self.operands["weight"]))
        d = d.reshape(*indices.shape, -1)
        if self.by_frequency:
            # Counted within the sample: a sample's gradient is that of a batch of one.
            counts = (indices[:, :, None] == indices[:, None, :]).sum(2)
            d = d / counts[..., None]
        return indices, d


def refuse_renormalisation(max_norm: float | None) -> None:
    """Refuse a table with ``max_norm``, whose weight every forward pass would change.

    Raises:
        ModelError: It has a ``max_norm``.
    """
    if max_norm is not None:
        raise ModelError(
            "Embedding(max_norm=…) rewrites its weight in every forward pass; renormalise the "
            "weight once and set max_norm=None"
        )


RULES: dict[Callable[..., Any], type[Call]] = dict.fromkeys(
    (functional.embedding, Tensor.__getitem__, torch.index_select, Tensor.index_select),
    EmbeddingCall,
)
