"""Bounds on the smoothed quantile of any real score: which order statistic of the sample to take.

With ``q_p(x) = inf {t : P(s(x + sigma Z) <= t) >= p}``, ``p_- = shift(p, -c)`` and
``p_+ = shift(p, c)``, for every ``|delta|_2 <= c sigma``::

    q_{p_-}(x) <= q_p(x + delta) <= q_{p_+}(x)

Proof: {s <= t} is a smoothed indicator. At t = q_{p_+}(x) its value is at least p_+, so at
x + delta at least p: q_p(x + delta) <= t. At any t < q_{p_-}(x) it is below p_-, so at x + delta
below p: q_p(x + delta) > t. Scores may be infinite, and may have atoms. (Chiang et al. 2020,
"Detection as regression", arXiv 2007.03730, lemma 1.)
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import special

from gradood.arrays import Bools, Floats, Ints
from gradood.smoothing.bounds import anytime, binomial, sequential

#: Special functions are good to about 1e-13; a tail this much nearer to alpha is called too large.
_ROUNDING = 1e-10


def upper_rank(n: npt.ArrayLike, p: npt.ArrayLike, c: npt.ArrayLike, alpha: npt.ArrayLike) -> Ints:
    r"""The smallest k with ``P(Bin(n, p_+) >= k) <= alpha``; ``n + 1`` if there is none up to n.

    Claim: P(X_(k) < sup q_p(x + delta)) <= alpha, X_(k) the k-th smallest of n scores, k from 1,
    and X_(n + 1) = +inf.
    Proof: X_(k) < q_{p_+} only if at least k scores are below q_{p_+}; each is with probability at
    most p_+, so at least k are with probability at most P(Bin(n, p_+) >= k).
    """
    n, q, alpha = _broadcast(n, binomial.shift(p, c), alpha)

    def rare(k: Floats) -> Bools:
        return np.asarray(special.betainc(k, n - k + 1, q) <= alpha * (1 - _ROUNDING))

    return _first(n, rare)


def lower_rank(n: npt.ArrayLike, p: npt.ArrayLike, c: npt.ArrayLike, alpha: npt.ArrayLike) -> Ints:
    r"""The largest k with ``P(Bin(n, p_-) <= k - 1) <= alpha``; 0 if there is none.

    Claim: P(X_(k) > inf q_p(x + delta)) <= alpha, with X_(0) = -inf.
    Proof: X_(k) > q_{p_-} only if at most k - 1 scores are at or below q_{p_-}; each is with
    probability at least p_-, so that has probability at most P(Bin(n, p_-) <= k - 1).
    """
    n, q, alpha = _broadcast(n, binomial.shift(p, -np.asarray(c, np.float64)), alpha)

    def common(k: Floats) -> Bools:
        return np.asarray(special.betaincc(k, n - k + 1, q) > alpha * (1 - _ROUNDING))

    return _first(n, common) - 1


def anytime_upper_rank(
    n: npt.ArrayLike, p: npt.ArrayLike, alpha: npt.ArrayLike, planned: int
) -> Ints:
    r"""The smaller of the e-process's rank and, where n has a share of alpha, ``upper_rank``.

    Claim: P(X_(k) < q_p at some n) <= alpha, k that of each n; n + 1 gives +inf.
    Proof: X_(k) < q_p only if at least k of n scores are below q_p, each of which is with
    probability at most p. The first k is ``sequential.first_count``: there the e-value against "at
    most p" is at least 1 / (``anytime.ALWAYS`` alpha), which happens at some n with probability at
    most that. At one n, ``upper_rank`` fails with probability at most ``anytime.share(n) alpha``.
    These add up to alpha.
    """
    n, p, alpha = _broadcast(n, p, alpha)
    always = sequential.first_count(n, p, anytime.ALWAYS * alpha)
    own = anytime.share(n, planned) * alpha
    here = upper_rank(n, p, 0.0, np.where(own > 0, own, 0.5))
    return np.where(own > 0, np.minimum(always, here), always)


def anytime_lower_rank(
    n: npt.ArrayLike, p: npt.ArrayLike, alpha: npt.ArrayLike, planned: int
) -> Ints:
    """The largest k with P(X_(k) > q_p at some n) <= alpha, by the scores above; 0 gives -inf.

    Proof: X_(k) > q_p only if n - k + 1 scores or more are above q_p, each with probability at most
    1 - p; as for ``anytime_upper_rank``.
    """
    n = np.asarray(n, np.int64)
    return n + 1 - anytime_upper_rank(n, 1 - np.asarray(p, np.float64), alpha, planned)


def _broadcast(*arrays: npt.ArrayLike) -> list[Floats]:
    return list(np.broadcast_arrays(*(np.asarray(a, np.float64) for a in arrays)))


def _first(n: Floats, holds: Callable[[Floats], Bools]) -> Ints:
    """The first k in 1..n at which a condition monotone in k holds; n + 1 if it never does."""
    low, high = np.ones_like(n), n + 1
    while (low < high).any():
        middle = np.floor((low + high) / 2)
        true = holds(np.minimum(middle, n)) | (middle > n)
        low, high = np.where(true, low, middle + 1), np.where(true, middle, high)
    return high.astype(np.int64)


def upper(scores: npt.ArrayLike, rank: npt.ArrayLike) -> Floats:
    """``X_(rank)`` of scores ``[..., n]`` with NaN as +inf; +inf at rank ``n + 1``.

    ``rank`` has any shape; the result is the leading shape of the scores followed by it.
    """
    scores = np.asarray(scores, np.float64)
    filled = np.where(np.isnan(scores), np.inf, scores)
    ends = np.full((*scores.shape[:-1], 1), np.inf)
    return np.take(np.concatenate([-ends, np.sort(filled, -1), ends], -1), np.asarray(rank), -1)


def lower(scores: npt.ArrayLike, rank: npt.ArrayLike) -> Floats:
    """``X_(rank)`` with NaN as -inf; -inf at rank 0. See ``upper``."""
    scores = np.asarray(scores, np.float64)
    filled = np.where(np.isnan(scores), -np.inf, scores)
    ends = np.full((*scores.shape[:-1], 1), np.inf)
    return np.take(np.concatenate([-ends, np.sort(filled, -1), ends], -1), np.asarray(rank), -1)


def upper_from_counts(counts: npt.ArrayLike, edges: npt.ArrayLike, rank: npt.ArrayLike) -> Floats:
    """An upper bound of ``X_(rank)``: the upper edge of its column in the histogram.

    Args:
        counts: Int64 ``[..., K + 2]``, columns as in ``histogram``; NaN counts as +inf.
        edges: ``[K]``, ascending, any real numbers; what is above the last one is bounded by +inf.
        rank: From ``upper_rank``, any shape; the result is the leading shape followed by it.
    """
    counts = np.asarray(counts, np.int64)
    tops = np.concatenate([np.asarray(edges, np.float64), [np.inf, np.inf]])
    return _column_value(counts, np.append(tops, np.inf), np.asarray(rank))


def lower_from_counts(counts: npt.ArrayLike, edges: npt.ArrayLike, rank: npt.ArrayLike) -> Floats:
    """A lower bound of ``X_(rank)``: the lower edge of its column; NaN counts as -inf."""
    counts = np.asarray(counts, np.int64)
    first = np.concatenate([counts[..., -1:], counts[..., :-1]], -1)
    bottoms = np.concatenate([[-np.inf, -np.inf], np.asarray(edges, np.float64)])
    return _column_value(first, np.append(bottoms, np.inf), np.asarray(rank))


def _column_value(counts: Ints, values: Floats, rank: Ints) -> Floats:
    """``values[j]`` of the column j in which the rank-th smallest lies."""
    rows = counts.reshape(-1, counts.shape[-1]).cumsum(-1)
    found = [values[np.searchsorted(row, rank, side="left")] for row in rows]
    result = np.where(rank > 0, np.array(found), -np.inf)
    return np.reshape(result, counts.shape[:-1] + rank.shape)
