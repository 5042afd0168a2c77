"""The second half of every norm: partial sums of a sample's tiles, added in a fixed order.

Kernels store float32 numbers a tile and never add with atomics, so that results do not depend on
the order in which programs run. One launch adds up what a call left behind, or, inside
``pending.held``, what all calls of a pass did. Bytes moved: 4 a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from gradood.kernels.launch import on
from gradood.kernels.prepared import Arrange, Launch
from gradood.pending import HELD, Sums

#: Numbers a sample, and results, that one launch at the end of a pass adds up.
ROOM, RESULTS = 16384, 512
_MOST_RESULTS = 2  # of a call
#: Numbers a sample to which room is rounded: Triton compiles for pointers that are aligned, or not.
_ALIGNED = 4


class Segment(NamedTuple):
    """Numbers of one result among those that a call stored for a sample.

    ``Σ_j (Σ_s v[s, j])^e`` with ``splits`` rows s of ``columns`` numbers, and e = 2 if ``squared``.
    """

    begin: int
    columns: int
    splits: int = 1
    squared: bool = False


@triton.jit
def vector_sqnorm(vector):
    """``Σ v²`` of a vector that was summed up in a loop.

    Triton 3.8 fails an assertion when the result of such a loop has two uses, as in ``v * v``.
    """
    column = tl.expand_dims(vector, 1)
    return tl.sum(tl.sum(column * column, axis=1), axis=0)


@triton.jit(do_not_specialize=["samples", "results"])
def _sum_kernel(
    partial,  # a call after the other, [samples, width]
    table,  # [results, 6]: numbers a sample before the call's, width, then a Segment
    out,  # [results, samples]
    samples,
    results,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    sample = program // results
    entry = table + program % results * 6
    before, width, begin = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    columns, splits = tl.load(entry + 3).to(tl.int32), tl.load(entry + 4).to(tl.int32)
    squared = tl.load(entry + 5) != 0
    row = partial + before * samples + sample * width + begin
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.zeros((BLOCK,), tl.float32)
        for split in range(0, splits):
            place = row + split * columns + column
            value += tl.load(place, mask=column < columns, other=0.0)
        total += tl.where(squared, value * value, value)
    tl.store(out + program % results * samples + sample, tl.sum(total, axis=0))


class _Batch:
    """Partial sums of calls on one stream, for one number of samples, that one launch adds up."""

    def __init__(self, partial: Tensor, samples: int, results: int) -> None:
        self.partial, self.samples, self.used = partial, samples, 0
        self._most, self._results = partial.numel(), results
        self._out = partial.new_empty(results, samples)
        self._rows: list[tuple[int, ...]] = []

    def has(self, width: int) -> bool:
        """Whether another call fits, with as many results as any has."""
        fits = self.samples * (self.used + width) <= self._most
        return fits and len(self._rows) + _MOST_RESULTS <= self._results

    def take(self, width: int, segments: Sequence[Segment]) -> tuple[Tensor, list[Tensor]]:
        """Room for ``[samples, width]`` numbers of the next call, and where their sums will be."""
        room = self.partial[self.samples * self.used :]
        first = len(self._rows)
        self._rows += [(self.used, width, *map(int, segment)) for segment in segments]
        self.used += -(-width // _ALIGNED) * _ALIGNED
        return room, list(self._out[first : len(self._rows)].unbind())

    def add_up(self) -> None:
        """One launch."""
        if not self._rows or not self.samples:
            return
        device, results = self.partial.device, len(self._rows)
        longest = max(columns for _, _, _, columns, *_ in self._rows)
        block = min(256, max(32, triton.next_power_of_2(longest)))
        _sum_kernel[(results * self.samples,)](
            self.partial,
            _table(device, tuple(self._rows)),
            self._out,
            self.samples,
            results,
            BLOCK=block,
            num_warps=1,
        )


class _Held:
    """The partial sums of a pass on one stream: as many batches as hold all calls."""

    def __init__(self, like: Tensor) -> None:
        self._samples, self._device = like.shape[0], like.device
        self._stream = torch.cuda.current_stream(like.device) if like.is_cuda else None
        self._batches: list[_Batch] = []

    def take(self, width: int, segments: Sequence[Segment]) -> tuple[Tensor, list[Tensor]]:
        """See ``_Batch.take``."""
        if not self._batches or not self._batches[-1].has(width):
            size = self._samples * max(ROOM, width)
            room = torch.empty(size, dtype=torch.float32, device=self._device)
            self._batches.append(_Batch(room, self._samples, RESULTS))
        return self._batches[-1].take(width, segments)

    def finish(self) -> None:
        """Launch, after everything that was launched on the stream of the calls."""
        there = self._stream
        current = None if there is None else torch.cuda.current_stream(self._device)
        with on(self._device), nullcontext() if there is None else torch.cuda.stream(there):
            for batch in self._batches:
                batch.add_up()
        if there is not None and current is not None and current != there:
            current.wait_stream(there)


@cache
def _table(device: torch.device, rows: tuple[tuple[int, ...], ...]) -> Tensor:
    """On the device, once a model: the capture of a CUDA graph cannot copy it there."""
    return torch.tensor(rows, dtype=torch.int64, device=device)


class Summed(NamedTuple):
    """A launch whose programs leave ``width`` numbers a sample, and the sums of them as results."""

    launch: Launch
    width: int
    segments: tuple[Segment, ...]
    #: What the first two tensors are turned into first, where a view of them does not do.
    arrange: Arrange | None = None

    def __call__(self, x: Tensor, d: Tensor, *others: Tensor) -> list[Tensor]:
        """The result ``[N]`` of every segment; the kernel is told where its numbers go last."""
        if self.arrange is not None:
            x, d = self.arrange(x, d)
        sums = HELD.get()
        if sums is not None:
            partial, results = _held(sums, x).take(self.width, self.segments)
            self.launch(x, d, *others, partial)
            return results
        samples = x.shape[0]
        room = torch.empty(samples * self.width, dtype=torch.float32, device=x.device)
        batch = _Batch(room, samples, len(self.segments))
        partial, results = batch.take(self.width, self.segments)
        self.launch(x, d, *others, partial)
        batch.add_up()
        return results

    def both(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """The norms of weight and bias; the second is empty without."""
        weight, *bias = self(x, d)
        return weight, bias[0] if bias else weight.new_empty(0)


class Stored(NamedTuple):
    """A launch whose programs store the norms of weight and bias themselves."""

    launch: Launch
    bias: bool
    arrange: Arrange | None = None

    def both(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """The norms of weight and bias; the second is empty without."""
        if self.arrange is not None:
            x, d = self.arrange(x, d)
        weight = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
        bias = weight.new_empty(x.shape[0] if self.bias else 0)
        self.launch(x, d, weight, bias)
        return weight, bias


def weights_and_biases(weights: int, biases: int) -> tuple[int, tuple[Segment, ...]]:
    """Width and segments of so many numbers for a weight's norm, and so many for a bias's."""
    segments = Segment(0, weights), Segment(weights, biases)
    return weights + biases, segments[: 1 + (biases > 0)]


def _held(sums: dict[Any, Sums], like: Tensor) -> _Held:
    stream = driver.active.get_current_stream(like.device.index) if like.is_cuda else None
    key = ("triton", like.device, stream, like.shape[0])
    found = sums.get(key)
    if found is None:
        found = sums[key] = _Held(like)
    assert isinstance(found, _Held)
    return found
