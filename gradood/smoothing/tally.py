"""Counts so far, and the file that keeps them over interruptions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from gradood.arrays import Ints
from gradood.state_file import StateFile

_KEY = "gradood-sampling"


def kept_seed(path: str | Path | None) -> int | None:
    """The seed of the run whose state the file holds, or None, also for a damaged file."""
    if path is None or not Path(path).exists():
        return None
    try:
        with safe_open(Path(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
        return int(header["identity"]["settings"]["seed"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return None


class Entry(NamedTuple):
    """The counts of one input; replaced as a whole, so that an interruption leaves no half."""

    counts: npt.NDArray[Any] | None
    samples: int
    finished: bool

    def counts_or(self, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The counts, or zeros before the first block."""
        return np.zeros_like(like) if self.counts is None else self.counts


class Tally:
    """An ``Entry`` for each of N inputs."""

    def __init__(self, inputs: int) -> None:
        self._entries = [Entry(None, 0, False)] * inputs

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __getitem__(self, row: int) -> Entry:
        return self._entries[row]

    def __setitem__(self, row: int, entry: Entry) -> None:
        self._entries[row] = entry

    def reopen(self) -> None:
        """Let every input have further samples."""
        self._entries = [entry._replace(finished=False) for entry in self._entries]

    def width_of(self, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Counts of any input that has some, else ``like``."""
        return next((e.counts for e in self._entries if e.counts is not None), like)

    @property
    def counts(self) -> npt.NDArray[Any]:
        """``[N, K]``; ``[N, 0]`` before the first sample."""
        like = self.width_of(np.zeros(0, np.int64))
        rows = [entry.counts_or(like) for entry in self._entries]
        return np.stack(rows) if rows else like[None][:0]

    @property
    def samples(self) -> Ints:
        """``[N]``."""
        return np.array([entry.samples for entry in self._entries], np.int64)


class Resumable:
    """Tallies that are read from a file, if it exists, and written to it.

    Args:
        path: Safetensors with a JSON header, never pickle; None keeps tallies in memory only.
        identity: What samples depend on, as JSON values.
        inputs: How many there are.
        names: Of the tallies.
    """

    def __init__(
        self, path: str | Path | None, identity: Mapping[str, Any], inputs: int, *names: str
    ) -> None:
        self._file = StateFile(path, _KEY, identity, "an interrupted certification")
        self._tallies = {name: Tally(inputs) for name in names}
        tensors = self._file.read()
        if tensors is not None:
            self._restore(tensors)

    def __getitem__(self, name: str) -> Tally:
        return self._tallies[name]

    def save(self, now: bool) -> None:
        """Write the file, at once or if the last time is a minute ago."""
        if not (now or self._file.due):
            return
        tensors: dict[str, torch.Tensor] = {}
        for name, tally in self._tallies.items():
            finished = np.array([entry.finished for entry in tally], bool)
            parts = {"counts": tally.counts, "samples": tally.samples, "finished": finished}
            tensors |= {f"{name}.{part}": torch.from_numpy(a) for part, a in parts.items()}
        self._file.write(tensors)

    def _restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        try:
            for name, tally in self._tallies.items():
                counts, samples, finished = (
                    tensors[f"{name}.{part}"].numpy() for part in ("counts", "samples", "finished")
                )
                for row in range(len(tally)):
                    kept = counts[row] if samples[row] else None
                    tally[row] = Entry(kept, int(samples[row]), bool(finished[row]))
        except (LookupError, TypeError, ValueError) as error:
            raise self._file.damaged(error) from error
