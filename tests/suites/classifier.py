"""Make a classifier of any function of tensors: a batch at one argument, a fixed linear head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

CLASSES = 3
SAMPLES = 3


class Layout(Enum):
    """How the samples come into the function."""

    #: A new first dimension: the function broadcasts, or takes batches.
    STACKED = "stacked"
    #: The argument's own first or second dimension.
    ROWS = "rows"
    COLUMNS = "columns"
    #: The function runs once a sample.
    EACH = "each"


class Classifier(nn.Module):
    """``function(*leaves)`` with the batch in place of one leaf, then a fixed linear head.

    Args:
        function: takes what ``spec`` makes of the leaves; a module's parameters are the
            classifier's.
        leaves: the arguments, flattened; tensors become buffers.
        spec: puts them together again.
        place: which leaf the batch replaces, or None if the batch multiplies the result.
        layout: how.
        weights: leaves that become parameters.
        shift: whether a parameter is added to the batch first.
        fit: the dimension in which other leaves are fitted to the size of the batch, if any.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        leaves: Sequence[Any],
        spec: TreeSpec,
        place: int | None,
        layout: Layout,
        weights: Sequence[int] = (),
        shift: bool = False,
        fit: int | None = None,
    ) -> None:
        super().__init__()
        self.function, self.spec, self.place, self.layout = function, spec, place, layout
        self.fit = fit
        self.constants: list[Any] = []
        for i, leaf in enumerate(leaves):
            tensor = isinstance(leaf, Tensor) and i != place
            self.constants.append(None if tensor else leaf)
            if tensor and i in weights:
                self.register_parameter(f"leaf{i}", nn.Parameter(leaf.detach().clone()))
            elif tensor:
                self.register_buffer(f"leaf{i}", leaf.detach().clone())
        if shift:
            self.shift = nn.Parameter(torch.zeros(_shape_of_one(leaves[place], layout)).double())
        else:
            self.shift = None
        self.head: Tensor | None = None
        self.kept: list[int] | None = None

    def finish(self, x: Tensor) -> Classifier:
        """Make the head for what ``x`` gives."""
        with torch.no_grad():
            if self.place is not None and self.layout is not Layout.EACH:
                self.kept = self._grown(x + self.shift if self.shift is not None else x)
            features = self.features(x)
        generator = torch.Generator().manual_seed(0)
        width = features.shape[1]
        head = torch.randn(width, CLASSES, generator=generator, dtype=torch.float64)
        scale = float(features.abs().nan_to_num(0, 0, 0).amax()) if features.numel() else 1.0
        self.register_buffer("scale", torch.tensor(1 / max(scale, 1.0)).double())
        del self.head
        self.register_buffer("head", head / max(width, 1) ** 0.5)
        return self.eval()

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x).to(self.head.dtype)
        return features * self.scale @ self.head

    def features(self, x: Tensor) -> Tensor:
        """``[N, F]``."""
        if self.shift is not None:
            x = x + self.shift
        if self.place is None:
            weight = torch.cat([t.flatten() for t in outputs(self._call(None, 0))])
            return x * weight
        if self.layout is Layout.EACH:
            calls = [self._call(sample, 1) for sample in x]
            return torch.stack([torch.cat([t.flatten() for t in outputs(o)]) for o in calls])
        parts = self._results(x)
        kept = range(len(parts)) if self.kept is None else self.kept
        return torch.cat([parts[i].transpose(0, self._dim).flatten(1) for i in kept], 1)

    @property
    def _dim(self) -> int:
        """Where the samples go in, and come out."""
        return 1 if self.layout is Layout.COLUMNS else 0

    def _results(self, x: Tensor) -> list[Tensor]:
        return outputs(self._call(x.transpose(0, self._dim), len(x)))

    def _grown(self, x: Tensor) -> list[int]:
        """The results with a row a sample: a layer's last state, say, has its samples elsewhere."""
        dim, sizes = self._dim, (len(x) - 1, len(x))
        pairs = zip(*(self._results(x[:size]) for size in sizes), strict=True)
        return [
            i
            for i, ts in enumerate(pairs)
            if all(t.dim() > dim and t.shape[dim] == n for t, n in zip(ts, sizes, strict=True))
        ]

    def _call(self, batch: Tensor | None, size: int) -> Any:
        leaves = list(self._leaves(batch, size))
        args, kwargs = tree_unflatten(leaves, self.spec)
        return self.function(*args, **kwargs)

    def _leaves(self, batch: Tensor | None, size: int) -> Iterator[Any]:
        for i, constant in enumerate(self.constants):
            if i == self.place:
                yield batch
            elif hasattr(self, f"leaf{i}"):
                leaf = getattr(self, f"leaf{i}")
                yield leaf if self.fit is None else self._fitted(leaf, size)
            else:
                yield constant

    def _fitted(self, leaf: Tensor, size: int) -> Tensor:
        """A tensor with a row a sample gets as many as the batch has."""
        dim = self.fit
        if leaf.dim() <= dim or leaf.shape[dim] != self.rows or self.layout is Layout.EACH:
            return leaf
        one = leaf.narrow(dim, 0, 1)
        return one.expand(*[size if d == dim else -1 for d in range(leaf.dim())])

    #: Rows of the batch in the list's own arguments.
    rows = 0


def outputs(out: Any) -> list[Tensor]:
    """The differentiable tensors in a result, real and dense."""
    found = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
    dense = [t.to_dense() if t.layout is not torch.strided else t for t in found]
    real = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in dense]
    kept = [t for t in real if t.is_floating_point()]
    if not kept:
        raise TypeError("no floating-point result")
    return kept


def _shape_of_one(leaf: Tensor, layout: Layout) -> list[int]:
    shape = list(leaf.shape)
    if layout is Layout.COLUMNS:
        shape[0], shape[1] = shape[1], shape[0]
    return shape if layout in (Layout.STACKED, Layout.EACH) else shape[1:]
