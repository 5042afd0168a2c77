"""Scores in [0, 1] kept as counts over fixed edges, so that memory does not depend on n.

The columns are those of ``ops.vote_count(..., "histogram")``: with K ascending edges, column j < K
counts ``edges[j - 1] < v <= edges[j]``, column K the values above the last edge, column K + 1 NaN.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradood.arrays import Floats, Ints

Counts = Ints


class Sample(NamedTuple):
    """Scores with multiplicity, none of them below the score it stands for.

    Attributes:
        values: Float64 ``[A]``, ascending, in [0, 1].
        counts: Int64 ``[A]``, how many scores each value stands for.
        seed: Of ``split``, in [0, 2^32).
    """

    values: Floats
    counts: Counts
    seed: int = 0

    @property
    def n(self) -> int:
        """The number of scores."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Their mean, at most 1."""
        return min(float(self.values @ self.counts) / self.n, 1.0)

    def above(self) -> Counts:
        """``[A + 1]``: how many scores are above 'below all', values[0], ..., values[A - 1]."""
        return self.n - np.append(0, self.counts.cumsum())

    def split(self, share: float, times: int) -> Counts:
        """``[times, A]``: counts of parts to which each score belongs with probability ``share``.

        Each part and the rest of the scores are independent: a coin that knows nothing of the
        scores decides.
        """
        # NumPy promises this old generator's numbers for ever, so a bound can be computed again.
        coins = np.random.RandomState(self.seed)
        parts = coins.binomial(self.counts, min(share, 0.5), (times, len(self.counts)))
        return parts.astype(np.int64)


def default_edges() -> npt.NDArray[np.float32]:
    """``k / 4096`` and ever finer towards both ends, ascending; exact in float32.

    Rounding a score up to its edge adds at most 1 / 4096 to a mean. The edges 0 and 1 - 2^-24 keep
    exact zeros and (float32) ones apart from everything else.
    """
    fine = 0.5 ** np.arange(13, 25)
    edges = np.concatenate([np.arange(4097) / 4096, fine, 1 - fine])
    return np.sort(edges).astype(np.float32)


def rounded_up(counts: npt.ArrayLike, edges: npt.ArrayLike, seed: int = 0) -> Sample:
    """Every score at the upper edge of its column; NaN and what is above the last edge at 1.

    Args:
        counts: Int64 ``[K + 2]``.
        edges: ``[K]``, ascending, in [0, 1].
        seed: Of the sample.
    """
    counts = np.asarray(counts, np.int64)
    values = np.append(np.asarray(edges, np.float64), 1.0)
    merged = counts[:-1].copy()
    merged[-1] += counts[-1]
    used = merged > 0
    return Sample(values[used], merged[used], seed)


def mirrored(counts: npt.ArrayLike, edges: npt.ArrayLike) -> tuple[Counts, Floats]:
    """The histogram of ``1 - score``: an upper bound of its mean is 1 - a lower bound of ours.

    Column j becomes column K - j. The side on which a column is closed changes; its upper edge,
    1 - edges[j - 1], is still at or above every value in it. NaN remains NaN, the worst.
    """
    counts = np.asarray(counts, np.int64)
    columns = np.concatenate([counts[..., -2::-1], counts[..., -1:]], -1)
    return columns, 1 - np.asarray(edges, np.float64)[::-1]


def of_scores(scores: npt.ArrayLike, seed: int = 0) -> Sample:
    """Exact scores ``[n]`` as a sample: ties merged, NaN and what is above 1 at 1."""
    scores = np.asarray(scores, np.float64)
    scores = np.clip(np.where(np.isnan(scores), 1.0, scores), 0, 1)
    values, counts = np.unique(scores, return_counts=True)
    return Sample(values, counts.astype(np.int64), seed)
