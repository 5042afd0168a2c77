"""Tensors computed from parameters alone: their origin, and how gradients lead back to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.nn import Parameter

from gradood.errors import ModelError
from gradood.gradients.gathered import through_rows

_MARK = "_gradood_source"
_NAME = "_gradood_parameter"


class Region(NamedTuple):
    """The elements of a parameter that a view of it shows: each at most once."""

    parameter: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bounds(self) -> tuple[int, int]:
        """The first and the last element, as offsets into the parameter's storage."""
        reach = sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        return self.offset, self.offset + reach


class Source:
    """A parameter, or a tensor computed from parameters and constants only.

    ``value`` is what the model sees: a plain tensor. ``live`` is the same value in an autograd
    graph whose leaves share the parameters' storage: a gradient of the value can be pulled back
    through it. The value carries a mark that leads back here.
    """

    def __init__(self, value: Tensor, live: Tensor, region: Region | None) -> None:
        # A weak reference: the mark refers back, and what the model drops must be freed at once.
        self._value = ref(value)
        self.live = live
        self._region = region
        self._graph: Any = None
        self._leaves: dict[str, Tensor] = {}
        self._version = live._version
        setattr(value, _MARK, self)

    @property
    def value(self) -> Tensor:
        """What the model sees."""
        value = self._value()
        assert value is not None
        return value

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The leaves of the value's graph, by parameter name; in-place changes may add some."""
        if self._graph is not self.live.grad_fn or not self._leaves:
            self._graph = self.live.grad_fn
            found = ((parameter_name(leaf), leaf) for leaf in graph_leaves(self.live))
            self._leaves = {name: leaf for name, leaf in found if name is not None}
        return self._leaves

    @property
    def region(self) -> Region | None:
        """The elements of its one parameter that the value shows, if it shows them unchanged."""
        return self._region if self.live._version == self._version else None

    @classmethod
    def of_parameter(cls, name: str, plain: Tensor) -> Source:
        """The source of a parameter itself; the model computes with ``plain``."""
        leaf = plain.detach().requires_grad_()
        setattr(leaf, _NAME, name)
        return cls(plain, leaf, _region(name, leaf, leaf))

    @classmethod
    def derived(cls, live: Tensor, parents: list[Source], isometric: bool) -> tuple[Tensor, Source]:
        """The source that an operator made of ``parents``, and its value.

        ``isometric`` operators copy or cast: they keep the elements that their parent shows.
        """
        region = None
        if len(parents) == 1 and parents[0].region is not None:
            ((name, leaf),) = parents[0].leaves.items()
            region = parents[0].region if isometric else _region(name, leaf, live)
        # A leaf of its own: an operator that nobody sees puts it into the graph of the logits.
        value = live.detach().requires_grad_()
        source = cls(value, live, region)
        if len(parents) == 1:  # there is nothing to search for
            source._graph, source._leaves = live.grad_fn, parents[0].leaves
        return value, source

    def pull_back(self, gradient: Tensor, name: str) -> Tensor:
        """Turn per-sample gradients ``[N, …]`` of the value into those of a parameter.

        Raises:
            ModelError: Autograd cannot.
        """
        leaf = self.leaves[name]
        if self.live is leaf:
            return gradient
        gradient = gradient.to(self.live.dtype)
        try:
            pulled = through_rows(self.live, leaf, gradient)
            pulled = self._pulled(leaf, gradient, True) if pulled is None else pulled
        except RuntimeError:  # an operator without a batching rule: one sample at a time
            try:
                # Copies: some operators ask for an alignment that a row of a batch may lack.
                rows = [self._pulled(leaf, g.clone(), False) for g in gradient]
            except RuntimeError as error:
                raise ModelError(
                    f"autograd cannot differentiate what the model makes of {name}: {error}"
                ) from error
            pulled = None if rows[0] is None else torch.stack(rows)
        return gradient.new_zeros(len(gradient), *leaf.shape) if pulled is None else pulled

    def _pulled(self, leaf: Tensor, gradient: Tensor, batched: bool) -> Any:
        (pulled,) = torch.autograd.grad(
            self.live,
            [leaf],
            gradient,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )
        sparse = pulled is not None and pulled.layout is not torch.strided
        return pulled.to_dense() if sparse else pulled


def derived_source(tensor: Tensor) -> Source | None:
    """The source of a tensor that an earlier operator computed from parameters; None for others."""
    return getattr(tensor, _MARK, None)


def parameter_name(leaf: Tensor) -> str | None:
    """The parameter that a leaf of a source's graph stands for."""
    return getattr(leaf, _NAME, None)


def graph_leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The leaves that a tensor's autograd graph leads to."""
    if tensor.grad_fn is None:
        yield tensor
        return
    yield from graph_leaves_of(tensor.grad_fn)


def graph_leaves_of(node: Any) -> Iterator[Tensor]:
    """The leaves below a node of an autograd graph."""
    seen: set[Any] = set()
    stack: list[Any] = [node]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack += [parent for parent, _ in node.next_functions]


def plain_value(parameter: Parameter) -> Tensor:
    """A plain tensor that shares the parameter's memory; the model computes with it."""
    plain = parameter.detach()
    return plain.clone() if plain.is_inference() else plain


def is_source(value: object) -> bool:
    """Whether a value is a parameter or a tensor made of parameters."""
    return isinstance(value, Tensor) and (
        isinstance(value, Parameter) or derived_source(value) is not None
    )


def disjoint(a: Region, b: Region) -> bool:
    """Whether two views of one parameter have no element in common."""
    (a_first, a_last), (b_first, b_last) = a.bounds, b.bounds
    if a_last < b_first or b_last < a_first:
        return True
    seen = torch.zeros(1 + max(a_last, b_last), dtype=torch.uint8, device="cpu")
    for region in (a, b):
        seen.as_strided(region.size, region.stride, region.offset).add_(1)
    return bool((seen < 2).all())


def _region(name: str, leaf: Tensor, view: Tensor) -> Region | None:
    """The region of ``leaf`` that ``view`` shows; None if an element occurs twice."""
    if view.layout is not torch.strided:
        return None
    same = view.untyped_storage().data_ptr() == leaf.untyped_storage().data_ptr()
    if not same or view.dtype != leaf.dtype or view.numel() == 0:
        return None
    size, stride = tuple(view.shape), tuple(view.stride())
    reach = 1
    for s, n in sorted(zip(stride, size, strict=True)):
        if n > 1:
            if s < reach:
                return None
            reach = s * n
    return Region(name, int(view.storage_offset() - leaf.storage_offset()), size, stride)
