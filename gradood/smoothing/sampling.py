"""Fill batches with noisy copies of the inputs that still need samples, and count the results.

Samples of an input are drawn in blocks, and a sequential test looks after each block. Every forward
pass has one shape: a *tile* of blocks of any inputs, the last one padded. So the counts of an input
do not depend on other inputs, their order, the batch size or interruptions. On the CPU this holds
to the last bit, with any number of threads. On other devices a score within rounding of a threshold
may be counted on its other side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from rich.progress import TextColumn
from torch import Tensor

from gradood.arrays import Bools, Ints
from gradood.errors import ModelError
from gradood.progress import bar
from gradood.smoothing.bounds import sequential
from gradood.smoothing.counting import Block, Counter
from gradood.smoothing.inference import Certified
from gradood.smoothing.noise import NoisyInputs
from gradood.smoothing.tally import Entry, Tally

Numbers: TypeAlias = "Ints"
#: ``(rows, counts [A, K], samples [A])`` -> bool ``[A]``: which inputs need no more samples?
Stop: TypeAlias = "Callable[[Numbers, Numbers, Numbers], Bools]"


#: Tiles that "auto" draws at once, to share the cost of bookkeeping.
_TILES = 4


class Sampler:
    """Draws samples of every input of ``noisy`` through ``model``.

    Args:
        model: What is certified.
        noisy: The inputs and their noise.
        save: Called now and then, and whenever sampling ends, however it ends.
    """

    def __init__(self, model: Certified, noisy: NoisyInputs, save: Callable[[bool], None]) -> None:
        self._model, self._noisy, self._save = model, noisy, save
        size = noisy.settings.batch_size
        self._tiles = _TILES if size == "auto" else -(-size // noisy.tile)

    def run(
        self, tally: Tally, counter: Counter, n: int, tag: int, stop: Stop | None = None
    ) -> None:
        """Add samples to ``tally`` until each input has n, or ``stop`` says that it needs no more.

        Args:
            tally: What was counted before; it is changed, one whole block at a time.
            counter: What is kept of a sample.
            n: The most samples an input.
            tag: The stream of noise.
            stop: Asked after every block; None goes on to n.
        """
        queue = deque(row for row, entry in enumerate(tally) if not entry.finished)
        active: list[int] = []
        tile = self._noisy.tile
        # Without a sequential test, blocks need not grow.
        size = sequential.block_at if stop else lambda _, tile: min(sequential.MOST, tile)
        try:
            with _shown(self._noisy.settings.progress, tally, n) as update:
                while queue or active:
                    needed = sum(size(tally[row].samples, tile) for row in active)
                    while queue and needed < self._tiles * tile:
                        active.append(queue.popleft())
                        needed += size(tally[active[-1]].samples, tile)
                    # Where a test may stop, further blocks of an input may be for nothing: they
                    # only fill a tile that runs anyway.
                    room = self._tiles * tile if stop is None else -(-needed // tile) * tile
                    blocks = _plan(tally, active, n, max(room, tile), size, tile)
                    for done, counts in self._count(blocks, counter, tag):
                        _book(tally, done, counts, n, stop)
                    active = [row for row in active if not tally[row].finished]
                    update()
                    self._save(False)
        finally:
            self._save(True)

    def _count(
        self, blocks: Sequence[Block], counter: Counter, tag: int
    ) -> Iterator[tuple[Sequence[Block], Tensor]]:
        """Blocks and their rows of counts, from as many whole tiles as they need.

        If the model fails or is interrupted, the finished blocks come before the exception.
        """
        tile = self._noisy.tile
        rows, firsts, sizes = np.array(blocks, np.int64).T
        owners = np.arange(len(blocks)).repeat(sizes)
        used = len(owners)
        # Padding repeats the last copy, so that it adds no unusual input.
        place = np.minimum(np.arange(-(-used // tile) * tile), used - 1)
        samples = (firsts - sizes.cumsum() + sizes)[owners] + np.arange(used)
        copies = torch.from_numpy(np.stack([rows[owners], samples])[:, place])
        noisy = self._noisy.copies(copies[0], copies[1], tag)
        results: list[Tensor] = []
        try:
            for part in noisy.split(tile):
                results.append(self._model(part))
        finally:
            whole = int(np.searchsorted(sizes.cumsum(), len(results) * tile, side="right"))
            if results and (whole := min(whole, len(blocks))):
                rows_done = int(sizes[:whole].sum())
                values = (results[0] if len(results) == 1 else torch.cat(results))[:rows_done]
                owner = torch.from_numpy(owners[:rows_done]).to(values.device)
                yield blocks[:whole], counter(values, owner, blocks[:whole])


def _plan(
    tally: Tally,
    active: Sequence[int],
    n: int,
    room: int,
    size: Callable[[int, int], int],
    tile: int,
) -> list[Block]:
    """The next blocks: one an input, and further ones where there is room for their rows."""
    blocks: list[Block] = []
    starts = {row: tally[row].samples for row in active}
    while True:
        begun = len(blocks)
        for row, start in starts.items():
            rows = min(size(start, tile), n - start)
            if 0 < rows <= room:
                blocks.append(Block(row, start, rows))
                starts[row] = start + rows
                room -= rows
        if len(blocks) == begun:
            return blocks


def _book(tally: Tally, blocks: Sequence[Block], counts: Tensor, n: int, stop: Stop | None) -> None:
    """Add blocks in order; those of inputs that have stopped are dropped."""
    numbers = counts.numpy()
    width = len(tally.width_of(numbers[0]))
    if width != numbers.shape[1]:
        raise ModelError(f"the model had {width - 1} outputs before, now {numbers.shape[1] - 1}")
    if stop is None:
        for block, more in zip(blocks, numbers, strict=True):
            entry = tally[block.row]
            reached = entry.samples + block.size
            tally[block.row] = Entry(entry.counts_or(more) + more, reached, reached >= n)
        return
    for turn in _turns(blocks):
        turn = [i for i in turn if not tally[blocks[i].row].finished]
        if not turn:
            continue
        rows = np.array([blocks[i].row for i in turn])
        total = np.stack([tally[r].counts_or(numbers[i]) for r, i in zip(rows, turn, strict=True)])
        total = total + numbers[turn]
        samples = np.array([tally[r].samples for r in rows]) + [blocks[i].size for i in turn]
        finished = (samples >= n) | stop(rows, total, samples)
        for row, count, number, done in zip(rows, total, samples, finished, strict=True):
            tally[int(row)] = Entry(count, int(number), bool(done))


def _turns(blocks: Sequence[Block]) -> Iterator[list[int]]:
    """Positions of the first block of every input, of the second, and so on."""
    turns: list[list[int]] = []
    seen: dict[int, int] = {}
    for i, block in enumerate(blocks):
        turn = seen.get(block.row, 0)
        seen[block.row] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(i)
    yield from turns


@contextmanager
def _shown(show: bool | None, tally: Tally, n: int) -> Iterator[Callable[[], None]]:
    """A bar of finished inputs and drawn samples on stderr; what brings it up to date."""
    with bar(TextColumn("{task.fields[state]}"), show=show) as progress:
        task = progress.add_task("certifying", total=len(tally), state="")

        def update() -> None:
            if progress.disable:
                return
            finished = sum(entry.finished for entry in tally)
            drawn = sum(entry.samples for entry in tally)
            begun = sum(entry.samples / n for entry in tally if not entry.finished)
            state = f"{finished}/{len(tally)} inputs, {drawn:,} samples"
            progress.update(task, completed=finished + begun, state=state)

        update()
        yield update
