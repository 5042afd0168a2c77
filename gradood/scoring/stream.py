"""Run inputs of a source through a function in batches, in order and in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradood.arguments import at_least, checked
from gradood.data.files import Decoded, Source, decoded
from gradood.errors import BackendError, InputError, ModelError, NotFittedError
from gradood.inputs import Inputs

if TYPE_CHECKING:
    from gradood.data.files.source import Position
    from gradood.scoring.models import LoadedModel

_LOG = logging.getLogger("gradood")

#: A batch of n inputs on the model's device -> tensors ``[n, …]``.
Compute: TypeAlias = Callable[[Any], Sequence[Tensor]]

#: An automatic batch has at most so many inputs, and so many bytes of them.
_MOST, _MOST_BYTES = 256, 64 << 20
#: So many failing inputs in a row are taken for an error of the model.
_PATIENCE = 100


@dataclass(frozen=True)
class Batch:
    """Results of some consecutive inputs.

    Attributes:
        ids: Of all of them, in order.
        errors: What is wrong with each, or None.
        results: What was computed of those without an error, ``[n, …]`` each, on the CPU.
        after: The position to go on from.
        limit: Inputs that fit into memory at once, as far as is known.
    """

    ids: list[str]
    errors: list[str | None]
    results: tuple[Tensor, ...]
    after: Position
    limit: int


@checked
class Stream:
    """Runs batches of inputs of one kind through ``compute``.

    Batches depend only on the inputs and on where the stream starts, so a stream that resumes after
    a batch gives the same bits. Only a lack of memory, which halves batches, changes that.

    Args:
        compute: What to do with a batch.
        loaded: The model, for its transform, device and precision.
        batch_size: Inputs a batch, or "auto": 256, or as many as take 64 MiB.
        on_error: "fail", or "skip" to report an input that cannot be read or scored, and go on.
        workers: Threads that read; None for one a core.
        limit: Inputs that are known to fit into memory at once.
    """

    def __init__(
        self,
        compute: Compute,
        loaded: LoadedModel,
        *,
        batch_size: int | Literal["auto"] = "auto",
        on_error: Literal["fail", "skip"] = "fail",
        workers: int | None = None,
        limit: int = 1 << 31,
    ) -> None:
        if batch_size != "auto":
            at_least("batch_size", batch_size)
        self._compute, self._loaded = compute, loaded
        self._batch_size, self._on_error, self._workers = batch_size, on_error, workers
        self._limit = limit
        self._failures = 0

    def run(self, source: Source, start: Position = (0, 0)) -> Iterator[Batch]:
        """The batches of ``source`` from ``start`` on."""
        waiting: list[Decoded] = []
        kind: tuple[object, ...] = ()
        usable = 0
        for item in decoded(source.placed(start), self._loaded.transform, workers=self._workers):
            if item.tensor is None:
                self._report(item.id, item.error)
            elif usable and _kind(item.tensor) != kind:
                yield self._batch(waiting)
                waiting, usable = [], 0
            if item.tensor is not None:
                kind, usable = _kind(item.tensor), usable + 1
            waiting.append(item)
            full = item.tensor is not None and usable >= self._size(item.tensor)
            if full or len(waiting) - usable >= _MOST:
                yield self._batch(waiting)
                waiting, usable = [], 0
        if waiting:
            yield self._batch(waiting)

    def _size(self, tensor: Tensor | Inputs) -> int:
        fitting = max(1, min(_MOST, _MOST_BYTES // max(1, tensor.nbytes)))
        return min(fitting if self._batch_size == "auto" else self._batch_size, self._limit)

    def _batch(self, items: list[Decoded]) -> Batch:
        errors = [item.error for item in items]
        places = [i for i, item in enumerate(items) if item.tensor is not None]
        parts: list[Sequence[Tensor]] = []
        while places:
            chosen, places = places[: self._limit], places[self._limit :]
            inputs = [tensor for i in chosen if (tensor := items[i].tensor) is not None]
            try:
                parts.append(self._results(inputs))
                self._failures = 0
            except Exception as error:
                if isinstance(error, (NotFittedError, BackendError)):
                    raise
                if _is_lack_of_memory(error):
                    self._halve(len(chosen), items[chosen[0]].id, error)
                    places = chosen + places
                elif len(chosen) > 1:  # whose fault is it? one by one
                    found = [self._batch([items[i]]) for i in chosen]
                    parts += [batch.results for batch in found if batch.results]
                    for i, batch in zip(chosen, found, strict=True):
                        errors[i] = batch.errors[0]
                else:
                    errors[chosen[0]] = self._blame(items[chosen[0]].id, error)
        results = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return Batch([item.id for item in items], errors, results, items[-1].after, self._limit)

    def _results(self, inputs: Sequence[Any]) -> Sequence[Tensor]:
        device, dtype = self._loaded.device, self._loaded.dtype
        if isinstance(inputs[0], Inputs):
            batch: Tensor | Inputs = Inputs.cat(inputs).to(device, dtype)
        else:
            stacked = torch.stack(list(inputs))
            batch = stacked.to(device, dtype if stacked.is_floating_point() else None)
        return [result.cpu() for result in self._compute(batch)]

    def _halve(self, size: int, name: str, error: Exception) -> None:
        if size == 1:
            raise ModelError(f"{name} alone does not fit into memory ({error})") from error
        self._limit = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _LOG.warning("%d inputs do not fit into memory; going on with %d", size, self._limit)

    def _blame(self, name: str, error: Exception) -> str:
        """What is wrong with the input, unless it is the model."""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        self._failures += 1
        if self._failures >= _PATIENCE:
            raise ModelError(
                f"the model fails on {self._failures} inputs in a row, the last {name}: {reason}"
            ) from error
        self._report(name, reason)
        return reason

    def _report(self, name: str, reason: str | None) -> None:
        if self._on_error == "fail":
            raise InputError(f"{name}: {reason}")
        _LOG.warning("skipped %s: %s", name, reason)


def _kind(inputs: Tensor | Inputs) -> tuple[object, ...]:
    """What inputs of one batch have in common."""
    if isinstance(inputs, Inputs):
        return inputs.kind
    return inputs.shape, inputs.dtype


def _is_lack_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # PyTorch's allocator for the CPU has no error of its own.
    said = ("DefaultCPUAllocator: can't allocate", "DefaultCPUAllocator: not enough memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in said)
