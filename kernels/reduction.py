"""The second half of every norm: partial sums of a sample's tiles, added in a fixed order.

Kernels store float32 numbers a tile and never add with atomics, so that results do not depend on
the order in which programs run. One launch adds up what a call left behind, or, inside
``pending.held``, what all calls of a pass did. Bytes moved: 4 a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradood.kernels.launch import on
from gradood.pending import HELD

#: Numbers a sample, and results, that one launch at the end of a pass adds up.
ROOM, RESULTS = 16384, 512
_MOST_RESULTS = 2  # of a call


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
        self._out = partial.new_empty(results, samples)
        self._rows: list[tuple[int, ...]] = []

    def has(self, width: int) -> bool:
        """Whether another call fits, with as many results as any has."""
        fits = self.samples * (self.used + width) <= self.partial.numel()
        return fits and len(self._rows) + _MOST_RESULTS <= len(self._out)

    def take(self, width: int) -> Tensor:
        """The numbers ``[samples, width]`` of the next call."""
        begin = self.samples * self.used
        self.used += width
        return self.partial[begin : begin + self.samples * width].view(self.samples, width)

    def result(self, partial: Tensor, segment: Segment) -> Tensor:
        """Where the sums ``[samples]`` will be."""
        before = int(partial.storage_offset()) // max(self.samples, 1)
        self._rows.append((before, partial.stride(0), *map(int, segment)))
        return self._out[len(self._rows) - 1]

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
        self._samples, self._device, self._stream = like.shape[0], like.device, _stream(like)
        self._batches: list[_Batch] = []

    @property
    def last(self) -> _Batch:
        """The batch of the call that is being made."""
        return self._batches[-1]

    def take(self, width: int) -> Tensor:
        """See ``_Batch.take``."""
        if not self._batches or not self.last.has(width):
            size = self._samples * max(ROOM, width)
            room = torch.empty(size, dtype=torch.float32, device=self._device)
            self._batches.append(_Batch(room, self._samples, RESULTS))
        return self.last.take(width)

    def finish(self) -> None:
        """Launch, after everything that was launched on the stream of the calls."""
        current = _stream(self.last.partial)
        with (
            on(self._device),
            nullcontext() if current is None else torch.cuda.stream(self._stream),
        ):
            for batch in self._batches:
                batch.add_up()
        if self._stream is not None and current is not None and current != self._stream:
            current.wait_stream(self._stream)


@cache
def _table(device: torch.device, rows: tuple[tuple[int, ...], ...]) -> Tensor:
    """On the device, once a model: the capture of a CUDA graph cannot copy it there."""
    return torch.tensor(rows, dtype=torch.int64, device=device)


def partials(like: Tensor, width: int) -> Tensor:
    """Room for ``width`` numbers of every sample of ``like``, ``[N, width]`` float32."""
    held = _held(like)
    if held is None:
        return torch.empty(like.shape[0], width, dtype=torch.float32, device=like.device)
    return held.take(width)


def results(partial: Tensor, segments: Sequence[Segment]) -> list[Tensor]:
    """The sums ``[N]`` of every segment of ``partial``, which ``partials`` made."""
    held = _held(partial)
    batch = _Batch(partial, len(partial), len(segments)) if held is None else held.last
    found = [batch.result(partial, segment) for segment in segments]
    if held is None:
        batch.add_up()
    return found


def sums(partial: Tensor, weights: int) -> tuple[Tensor, Tensor]:
    """``Σ partial[:, :weights]`` and ``Σ partial[:, weights:]``; the second is empty without."""
    biases = partial.shape[1] - weights
    segments = [Segment(0, weights), Segment(weights, biases)][: 1 + (biases > 0)]
    weight, *bias = results(partial, segments)
    return weight, bias[0] if bias else weight.new_empty(0)


def norms(like: Tensor) -> Tensor:
    """Room for results ``[N]`` that a kernel stores itself."""
    return torch.empty(like.shape[0], dtype=torch.float32, device=like.device)


def _held(like: Tensor) -> _Held | None:
    sums = HELD.get()
    if sums is None:
        return None
    key = ("triton", like.device, _stream(like), like.shape[0])
    if key not in sums:
        sums[key] = _Held(like)
    found = sums[key]
    assert isinstance(found, _Held)
    return found


def _stream(like: Tensor) -> torch.cuda.Stream | None:
    return torch.cuda.current_stream(like.device) if like.is_cuda else None
