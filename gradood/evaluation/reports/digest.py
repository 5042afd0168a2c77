"""Statistics of scores for reports, in one pass and in constant memory."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from gradood.arrays import Floats
from gradood.data.files.source import Source
from gradood.evaluation.reports.axis import Squash

#: A row of a score file: id, score, decision, layers and error.
Row = Mapping[str, Any]
#: Scores that quantiles are computed from, drawn at random where there are more.
SAMPLE = 10_000
#: Errors that are shown.
_ERRORS = 20


class Ranked(NamedTuple):
    """A row and its number among all, skipped ones included."""

    place: int
    row: Row


class ScoredSet(NamedTuple):
    """The scores of some inputs.

    Attributes:
        name: What they are called.
        scores: ``[N]``, of those that have one.
        digest: What else is known of them.
        source: The inputs, where they are at hand.
    """

    name: str
    scores: Floats
    digest: Digest
    source: Source | None


class Digest:
    """Counts, a random sample, and the ``keep`` highest and lowest of scored rows.

    Attributes:
        scored: Rows with a score.
        skipped: Rows without.
        decided: Rows with a decision.
        flagged: Those of them that are anomalous.
        limits: The lowest and the highest score.
        errors: The first rows without a score.
        reactions: How often each layer was named as having reacted, in rows with a score.
        p_values: How often each conformal p-value occurs; as many as calibration scores, and one.
    """

    def __init__(self, keep: int = 12, seed: int = 0) -> None:
        self.scored = self.skipped = self.decided = self.flagged = 0
        self.errors: list[Row] = []
        self.reactions: Counter[str] = Counter()
        self.p_values: Counter[float] = Counter()
        self._keep, self._random = keep, np.random.default_rng(seed)
        self._sample = np.empty(SAMPLE)
        self._high: list[tuple[float, int, Row]] = []
        self._low: list[tuple[float, int, Row]] = []
        self.limits = (np.inf, -np.inf)

    def read(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass rows on, and take note of them."""
        for row in rows:
            self.add(row)
            yield row

    def add(self, row: Row) -> None:
        """Take note of one row; rows come in the order of the inputs."""
        place, score = self.scored + self.skipped, row["score"]
        if score is None:
            self.skipped += 1
            if len(self.errors) < _ERRORS:
                self.errors.append(row)
            return
        # Algorithm R: every score so far is in the sample with the same probability.
        slot = self.scored
        if slot >= SAMPLE:
            slot = int(self._random.integers(self.scored + 1))
        if slot < SAMPLE:
            self._sample[slot] = score
        self.scored += 1
        self.limits = min(self.limits[0], score), max(self.limits[1], score)
        self.decided += row.get("decision") is not None
        self.flagged += row.get("decision") == 1
        self.reactions.update(layer["name"] for layer in row.get("layers") or ())
        if row.get("p_value") is not None:
            self.p_values[row["p_value"]] += 1
        # Of equal scores the first ones stay.
        _push(self._high, (score, -place, row), self._keep)
        _push(self._low, (-score, -place, row), self._keep)

    @property
    def highest(self) -> list[Ranked]:
        """The most anomalous rows, the most anomalous one first."""
        return [Ranked(-place, row) for _, place, row in sorted(self._high, key=_first)[::-1]]

    @property
    def lowest(self) -> list[Ranked]:
        """The least anomalous rows, the least anomalous one first."""
        return [Ranked(-place, row) for _, place, row in sorted(self._low, key=_first)[::-1]]

    @property
    def sample(self) -> Floats:
        """At most ``SAMPLE`` of the scores."""
        return self._sample[: min(self.scored, SAMPLE)]


def histogram_of(
    rows: Callable[[], Iterable[Row]], digest: Digest
) -> tuple[Floats, Floats, Squash]:
    """Counts, edges and axis of all scores: a second pass over the rows, in constant memory."""
    squash = Squash.of(digest.sample)
    edges = squash.edges(*digest.limits)
    counts = np.zeros(len(edges) - 1)
    scores = (row["score"] for row in rows() if row["score"] is not None)
    while part := list(islice(scores, 1 << 14)):
        counts += np.histogram(part, edges)[0]
    return counts, edges, squash


def _push(heap: list[tuple[float, int, Row]], item: tuple[float, int, Row], most: int) -> None:
    if len(heap) < most:
        heapq.heappush(heap, item)
    elif item[:2] > heap[0][:2]:
        heapq.heapreplace(heap, item)


def _first(item: tuple[float, int, Row]) -> tuple[float, int]:
    return item[:2]
