"""Any source of inputs -> batches of inputs on one device. Labels are ignored."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, TypeAlias

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradood.errors import InputError

#: A tensor ``[N, ...]``, a data set of samples, or an iterable of batches such as a ``DataLoader``.
#: A sample or a batch may be a tuple or list; its first element is the input.
InputSource: TypeAlias = "Tensor | Dataset[Any] | Iterable[Any]"


def iterate_batches(source: InputSource, batch_size: int) -> Iterator[Tensor]:
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
    if isinstance(source, Dataset):
        source = DataLoader(source, batch_size=batch_size)
    if isinstance(source, str | bytes | dict) or not isinstance(source, Iterable):
        raise InputError(
            f"cannot read inputs from {type(source).__name__}; give a Tensor [N, ...], a Dataset, "
            "a DataLoader or an iterable of batches"
        )
    for batch in source:
        yield from torch.split(_inputs(batch), batch_size)


def _inputs(batch: object) -> Tensor:
    inputs = batch[0] if isinstance(batch, Sequence) and batch else batch
    if not isinstance(inputs, Tensor) or inputs.ndim == 0:
        raise InputError(
            f"a batch is {type(inputs).__name__}; expected a Tensor [N, ...], or a tuple that "
            "starts with one (a NumPy array becomes one by torch.from_numpy)"
        )
    return inputs


def track(
    batches: Iterable[Tensor], source: InputSource, description: str, show: bool | None
) -> Iterator[Tensor]:
    """Pass ``batches`` through, with a progress bar on stderr that counts inputs.

    ``show``: None shows the bar only when stderr is a terminal.
    """
    terminal = sys.stderr.isatty()
    if not (terminal if show is None else show):
        yield from batches
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=terminal) as progress:
        task = progress.add_task(description, total=_count(source))
        for batch in batches:
            yield batch
            progress.advance(task, len(batch))


def _count(source: InputSource) -> int | None:
    """Inputs in ``source``, where it says so without being read."""
    if isinstance(source, DataLoader):
        source = source.dataset
    return (
        len(source) if isinstance(source, Tensor | Dataset) and isinstance(source, Sized) else None
    )
