"""Batches of several tensors: a tuple, a mapping or any nesting of them, samples first.

What probes models and differentiates them works on one tensor. So the tensors of a batch become one
tensor of bytes ``[N, B]``, and the model one that takes them apart again: its parameters, buffers
and modules are the model's own, under the same names.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from gradood.errors import InputError

#: Where the numbers of a tensor may begin, in bytes: for the widest dtype.
_ALIGNED = 16


class Inputs:
    """A batch of samples that consist of several tensors.

    Args:
        leaves: The tensors ``[N, …]`` and constants (None, numbers, strings), in their order.
        spec: How they are nested. A mapping's items are the model's keyword arguments, those of a
            tuple or list its arguments.
    """

    def __init__(self, leaves: Sequence[Any], spec: TreeSpec) -> None:
        self.leaves, self.spec = list(leaves), spec

    @staticmethod
    def of(tree: Any) -> Inputs:
        """The batch that ``tree`` is.

        Raises:
            InputError: It is no tuple, list or mapping, holds no tensor, tensors of several
                lengths or devices, or what is neither a tensor nor a constant.
        """
        if isinstance(tree, Inputs):
            return tree
        if not isinstance(tree, Mapping | tuple | list):
            raise InputError(
                f"x must be a Tensor with the samples along dimension 0, or a tuple or mapping of "
                f"such, not {type(tree).__name__}"
            )
        leaves, spec = tree_flatten(dict(tree) if isinstance(tree, Mapping) else tree)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        for leaf in leaves:
            if not isinstance(leaf, Tensor | str | int | float | None):
                raise InputError(
                    f"x holds {type(leaf).__name__}; expected tensors (of a NumPy array: "
                    "torch.from_numpy) and constants"
                )
        shapes = [list(t.shape) for t in tensors]
        if not tensors:
            raise InputError(
                "x must be a Tensor with the samples along dimension 0, or a tuple or mapping of "
                "such; it holds none"
            )
        lengths = {tuple(shape[:1]) for shape in shapes}
        if len(lengths) != 1 or () in lengths:
            raise InputError(
                f"x holds tensors of the shapes {shapes}; expected the same number of samples "
                "along dimension 0"
            )
        if len({t.device for t in tensors}) > 1:
            raise InputError("the tensors of x are on several devices; move them to the model's")
        return Inputs(leaves, spec)

    @property
    def tensors(self) -> list[Tensor]:
        """Those of the leaves that hold samples."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @staticmethod
    def cat(parts: Sequence[Inputs]) -> Inputs:
        """Batches of one ``kind`` as one."""
        columns = zip(*(part.leaves for part in parts), strict=True)
        leaves = [torch.cat(c) if isinstance(c[0], Tensor) else c[0] for c in columns]
        return Inputs(leaves, parts[0].spec)

    @property
    def kind(self) -> tuple[object, ...]:
        """What batches that can become one have in common."""
        made = (
            (leaf.shape[1:], leaf.dtype) if isinstance(leaf, Tensor) else leaf
            for leaf in self.leaves
        )
        return (str(self.spec), *made)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, rows: Any) -> Inputs:
        return self._each(lambda t: t[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Inputs:
        """The same on another device, and what is floating point in another dtype."""
        return self._each(lambda t: t.to(device, dtype if t.is_floating_point() else None))

    def detach(self) -> Inputs:
        """The same without a graph."""
        return self._each(torch.Tensor.detach)

    def split(self, size: int) -> Iterator[Inputs]:
        """Batches of at most so many samples, in order."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def call(self, model: Any) -> Any:
        """What ``model`` returns for them.

        Raises:
            InputError: It does not take so many, of these names or of this dtype.
        """
        tree = tree_unflatten(self.leaves, self.spec)
        try:
            return model(**tree) if isinstance(tree, dict) else model(*tree)
        except TypeError as error:
            explain_call(error)
            raise
        except RuntimeError as error:
            explain_dtype(model, self.tensors, error)
            raise

    def _each(self, change: Any) -> Inputs:
        return Inputs([change(x) if isinstance(x, Tensor) else x for x in self.leaves], self.spec)

    def packed(self, model: nn.Module) -> tuple[nn.Module, Tensor]:
        """``model`` as one of the bytes of its inputs, and these, ``[N, B]``."""
        made = [_Leaf(leaf.shape[1:], leaf.dtype) if isinstance(leaf, Tensor) else leaf
                for leaf in self.leaves]  # fmt: skip
        key = (repr(made), str(self.spec))
        known = _PACKED.setdefault(model, {})
        if key not in known:
            known[key] = _taking_bytes(model, ref(model), made, self.spec)
        return known[key], torch.cat([_bytes(t) for t in self.tensors], 1)


def require_one_tensor(x: object) -> Tensor:
    """``x``, which is not several tensors where one is moved: by noise, or by an attack.

    Raises:
        InputError: ``x`` is no tensor.
    """
    if isinstance(x, Tensor):
        return x
    leaves = x.leaves if isinstance(x, Inputs) else tree_flatten(x)[0]
    if any(isinstance(leaf, Tensor) for leaf in leaves):
        raise InputError(
            "x consists of several tensors; certificates and attacks move one, [N, …] of floating "
            "point: give that one to a module that adds the others, which stay as they are"
        )
    raise InputError(
        f"x must be a Tensor [N, …] with the inputs along dimension 0, not {type(x).__name__}"
    )


def explain_call(error: TypeError) -> None:
    """Say how several inputs are given, where a model has other arguments than it was given.

    Raises:
        InputError: That is what ``error`` is about.
    """
    if re.search(r"forward\(\) (missing|takes|got)", str(error)):
        raise InputError(
            f"the model does not take these inputs: {error}. Give the inputs of a model that has "
            "several as a tuple in their order, or as a mapping by the names of its arguments; a "
            "loader's batches are such, or ((a, b), label)"
        ) from error


def explain_dtype(model: nn.Module, tensors: Sequence[Tensor], error: Exception) -> None:
    """Say what a batch lacks that has not the dtype that a model wants.

    Raises:
        InputError: That is what ``error`` is about.
    """
    if "type" not in str(error):
        return
    wanted = {p.dtype for p in model.parameters() if p.is_floating_point()}
    floating = [t for t in tensors if t.is_floating_point()]
    for t in floating:
        if len(wanted) == 1 and t.dtype not in wanted:
            (dtype,) = wanted
            raise InputError(
                f"x is {t.dtype}, and the model's parameters are {dtype}; pass x.to({dtype})"
            ) from error
    if not floating:
        raise InputError(
            f"x is {tensors[0].dtype}, and the model expects floating point; for images in 0…255 "
            "pass x.float() / 255, or whatever the model was trained on"
        ) from error


class _Leaf(NamedTuple):
    """What is known of a tensor beside its values."""

    shape: torch.Size
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """Bytes a sample, up to where the next tensor begins."""
        taken = math.prod(self.shape) * self.dtype.itemsize
        return -(-taken // _ALIGNED) * _ALIGNED


def _bytes(t: Tensor) -> Tensor:
    leaf = _Leaf(t.shape[1:], t.dtype)
    rows = t.detach().reshape(len(t), math.prod(leaf.shape))
    # Cloned: a single element counts as contiguous whatever its stride, and has no view as bytes.
    raw = rows.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    return torch.nn.functional.pad(raw, (0, leaf.width - raw.shape[1]))


def _tensor(raw: Tensor, leaf: _Leaf) -> Tensor:
    taken = math.prod(leaf.shape) * leaf.dtype.itemsize
    return raw[:, :taken].view(leaf.dtype).reshape(len(raw), *leaf.shape).contiguous()


def _taking_bytes(model: nn.Module, held: Any, made: list[Any], spec: TreeSpec) -> nn.Module:
    """A module that shares everything with ``model``, which ``held()`` gives, but how it is called.

    It does not hold ``model`` itself where ``held`` is a weak reference.
    """

    def call(self: Any, x: Tensor) -> Any:
        leaves, start = [], 0
        for leaf in made:
            if isinstance(leaf, _Leaf):
                t = _tensor(x[:, start : start + leaf.width], leaf)
                leaves.append(t.double() if self.exact and t.is_floating_point() else t)
                start += leaf.width
            else:
                leaves.append(leaf)
        return Inputs(leaves, spec).call(held())

    def copied(self: Any, memo: dict[int, Any]) -> nn.Module:
        own = copy.deepcopy(held(), memo)
        return _taking_bytes(own, lambda: own, made, spec)

    def double(self: Any) -> Any:
        type(self).exact = True
        return nn.Module.double(self)

    methods = {"__call__": call, "forward": call, "__deepcopy__": copied, "double": double}
    kind = type(type(model).__name__, (type(model),), {**methods, "exact": False})
    packed: nn.Module = object.__new__(kind)
    object.__setattr__(packed, "__dict__", model.__dict__)
    return packed


#: By model and kind of input, the model that takes bytes.
_PACKED: WeakKeyDictionary[nn.Module, dict[Any, nn.Module]] = WeakKeyDictionary()
