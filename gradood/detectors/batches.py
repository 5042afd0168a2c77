"""Any source of inputs -> batches of inputs on one device. Labels are ignored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradood.errors import InputError
from gradood.inputs import Inputs

#: A tensor ``[N, ...]``; several, in a tuple in the order of the model's arguments or in a mapping
#: by their names; a data set of samples; or an iterable of batches such as a ``DataLoader``. A
#: sample or a batch may be a tuple or list, as ``(input, label)``: its first element is the input,
#: which may be a tuple or mapping itself.
InputSource: TypeAlias = "Tensor | Mapping[str, Any] | Inputs | Dataset[Any] | Iterable[Any]"

#: What a batch is: one tensor, or several that are given to the model together.
AnyBatch: TypeAlias = "Tensor | Inputs"

#: Keys of mappings that are labels, not inputs.
_LABELS = frozenset({"label", "labels", "label_ids"})


def iterate_batches(source: InputSource, batch_size: int) -> Iterator[AnyBatch]:
    """Yield the inputs of ``source`` in order, at most ``batch_size`` at a time.

    Raises:
        InputError: ``source`` is none of the kinds of ``InputSource``, or yields something that
            holds no tensor.
    """
    if isinstance(source, Tensor):
        if source.ndim == 0:
            raise InputError("the inputs are a single number; expected a tensor [N, ...]")
        yield from torch.split(source, batch_size)
        return
    if _is_one_batch(source):
        yield from Inputs.of(source).split(batch_size)
        return
    if isinstance(source, Mapping | Inputs):
        yield from _inputs(source).split(batch_size)
        return
    if isinstance(source, Dataset):
        source = DataLoader(source, batch_size=batch_size)
    if isinstance(source, str | bytes) or not isinstance(source, Iterable):
        raise InputError(
            f"cannot read inputs from {type(source).__name__}; give a Tensor [N, ...], a Dataset, "
            "a DataLoader or an iterable of batches"
        )
    for batch in source:
        yield from _inputs(batch).split(batch_size)


def _is_one_batch(source: object) -> bool:
    """Whether it is a tuple of the model's arguments, as ``gradient_norms`` takes them."""
    return (
        isinstance(source, tuple)
        and len(source) > 1
        and all(isinstance(part, Tensor) and part.ndim > 0 for part in source)
        and len({len(part) for part in source}) == 1
    )


def _inputs(batch: object) -> AnyBatch:
    inputs = batch[0] if isinstance(batch, Sequence) and batch else batch
    if isinstance(inputs, Inputs):
        return inputs
    if isinstance(inputs, Mapping):
        named = {name: value for name, value in inputs.items() if name not in _LABELS}
        (only,) = named.values() if len(named) == 1 else (None,)
        if "data" in named and isinstance(only, Tensor):  # as OpenOOD has it
            return only
        return Inputs.of(named)
    if isinstance(inputs, tuple | list) and inputs and isinstance(inputs[0], Tensor | Mapping):
        return Inputs.of(inputs)
    if not isinstance(inputs, Tensor) or inputs.ndim == 0:
        raise InputError(
            f"a batch is {type(inputs).__name__}; expected a Tensor [N, ...], or a tuple that "
            "starts with one (a NumPy array becomes one by torch.from_numpy)"
        )
    return inputs


def count_of(source: InputSource) -> int | None:
    """Inputs in ``source``, where it says so without being read."""
    if isinstance(source, DataLoader):
        source = source.dataset
    return (
        len(source) if isinstance(source, Tensor | Dataset) and isinstance(source, Sized) else None
    )
