"""Bounds on the smoothed mean of a score in [0, 1], at and near the input.

A bound is a function ``(sample, c, alpha) -> values like c``: with probability at least 1 - alpha
over the sample, the smoothed score is at most that everywhere within ``r = c sigma``. ``upper``
and ``lower`` apply one to histograms.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gradood.smoothing.bounds import binomial
from gradood.smoothing.bounds.histogram import Floats, Sample, mirrored, rounded_up

Bound = Callable[[Sample, Floats, float], Floats]

#: Fractions of the largest bet. Small ones serve large n, those near 1 small variances.
_BETS = np.concatenate([0.5 ** np.arange(14, 0, -1), 1 - 0.5 ** np.arange(2, 12)])
_BISECTIONS = 45


def kl(sample: Sample, c: Floats, alpha: float) -> Floats:
    r"""Invert Chernoff's bound: the largest m with ``n kl(mean, m) <= ln(1 / alpha)``, shifted.

    Claim: P(kl(...) < sup E s(x + delta)) <= alpha; kl(p, q) of two Bernoulli distributions.
    Proof: E exp(t X) <= 1 - mu + mu exp(t) on [0, 1] by convexity, so by Chernoff P(mean <= a) <=
    exp(-n kl(a, mu)) for a < mu: the bound is below mu with probability at most alpha.
    ``binomial.shift``, monotone, carries it to x + delta. (Hoeffding 1963, theorem 1.)
    """
    mean, limit = sample.mean, np.log(1 / alpha) / sample.n

    def divergence(m: float) -> float:
        left = mean * np.log(mean / m) if mean > 0 else 0.0
        right = (1 - mean) * np.log((1 - mean) / (1 - m)) if mean < 1 else 0.0
        return float(left + right)

    return binomial.shift(_smallest(lambda m: divergence(m) > limit, mean), c)


def betting(sample: Sample, c: Floats, alpha: float) -> Floats:
    r"""The smallest m at which betting against "the mean is at least m" wins 1 / alpha, shifted.

    With fractions b_j fixed beforehand::

        wealth(m) = mean_j prod_i [1 + b_j (m - X_i) / (1 - m)]

    Claim: P(betting(...) < sup E s(x + delta)) <= alpha.
    Proof: at m = mu every factor is at least 1 - b_j >= 0 and has mean 1, so the wealth is a
    nonnegative variable of mean 1 and reaches 1 / alpha with probability at most alpha (Markov).
    Factors grow with m, so the bound is below mu only if wealth(mu) >= 1 / alpha. The product does
    not depend on the order, so counts suffice. (Waudby-Smith and Ramdas 2024, section 4, with a
    fixed mixture of bets; Orabona and Jun 2024.) Adapts to the variance.
    """
    values, counts = sample.values, sample.counts
    goal = np.log(len(_BETS) / alpha)

    def rejected(m: float) -> bool:
        gains = np.log1p(_BETS[:, None] * ((m - values) / (1 - m))) @ counts
        return bool(np.logaddexp.reduce(gains) >= goal)

    return binomial.shift(_smallest(rejected, sample.mean), c)


def _smallest(rejected: Callable[[float], bool], low: float) -> float:
    """The smallest rejected m in [low, 1], from above; 1 if there is none short of it."""
    high = 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if middle < 1 and rejected(middle) else (middle, high)
    return high


def dkw(sample: Sample, c: Floats, alpha: float) -> Floats:
    r"""``integral_0^1 shift(min(1, S_n(t) + e), c) dt`` with ``e = sqrt(ln(1 / alpha) / 2n)``.

    S_n(t) is the share of scores above t. Claim: P(dkw(...) < sup E s(x + delta)) <= alpha.
    Proof: S(t) = P(s(x + sigma Z) > t) <= S_n(t) + e for all t at once but for an event of
    probability alpha <= 1/2 (Massart 1990). E s(x + delta + sigma Z) is the integral of the
    survival function there, and at each t that is a smoothed indicator, at most shift(S(t), c).
    (Kumar et al. 2020, arXiv 2009.08061.)
    """
    if alpha > 0.5:
        return np.ones_like(c)
    band = sample.above() / sample.n + np.sqrt(np.log(1 / alpha) / (2 * sample.n))
    return _integral(np.concatenate([[0], sample.values, [1]]), np.minimum(band, 1), c)


def rank(sample: Sample, c: Floats, alpha: float) -> Floats:
    r"""Like ``dkw``, with the band through m order statistics chosen beforehand.

    At the k-th largest score, of m ranks k, the band is the 1 - alpha / m quantile of
    Beta(k, n - k + 1); between them it continues from the next one below.

    Claim: P(rank(...) < sup E s(x + delta)) <= alpha.
    Proof: S(X) at the k-th largest of n scores is at most the k-th smallest of n uniform variables,
    which is Beta(k, n - k + 1); so it exceeds its band with probability at most alpha / m, and any
    of m does with at most alpha. S decreases, so the band at one chosen rank holds above it, up to
    the next; below the last, S <= 1. Then as for ``dkw``.
    """
    ranks, band = _rank_band(sample.n, alpha)
    # The k-th largest is the value with fewer than k scores above it, and k or more at or above.
    chosen = np.searchsorted(sample.above()[1:][::-1], ranks, side="left")
    values = sample.values[::-1][chosen - 1]
    steps = np.concatenate([[0], values[::-1], [1]])
    return _integral(steps, np.concatenate([[1], band[::-1]]), c)


@lru_cache(maxsize=64)
def _rank_band(n: int, alpha: float) -> tuple[npt.NDArray[np.int64], Floats]:
    """Ranks from the top, ascending, uniform in logit(rank / (n + 1)), and the band there."""
    wanted = 128 if n <= 10_000 else 512
    logits = np.linspace(-np.log(n), np.log(n), 4 * wanted)
    ranks = np.unique(np.clip(np.round((n + 1) / (1 + np.exp(-logits))), 1, n).astype(np.int64))
    if len(ranks) > wanted:
        ranks = ranks[np.unique(np.linspace(0, len(ranks) - 1, wanted).round().astype(int))]
    return ranks, binomial.upper(ranks - 1, n, alpha / len(ranks))


def _integral(steps: Floats, survival: Floats, c: Floats) -> Floats:
    """``integral shift(survival, c)``, with survival[i] constant on [steps[i], steps[i + 1])."""
    shifted = binomial.shift(survival, np.asarray(c)[..., None])
    return np.minimum(shifted @ np.diff(steps), 1.0)


def default(sample: Sample, c: Floats, alpha: float) -> Floats:
    """The smaller of ``betting`` and ``rank``, each at alpha / 2 (so that both hold: alpha)."""
    return np.minimum(betting(sample, c, alpha / 2), rank(sample, c, alpha / 2))


def upper(
    counts: npt.ArrayLike,
    edges: npt.ArrayLike,
    c: npt.ArrayLike,
    alpha: float,
    bound: Bound = default,
) -> Floats:
    """Upper bounds of the smoothed score within ``c sigma``, from histograms.

    Claim: as ``bound``'s. Scores are rounded up to their edges, NaN to 1, which raises the mean.

    Args:
        counts: int64 ``[..., K + 2]``, columns as in ``histogram``.
        edges: ``[K]``, ascending, in [0, 1].
        c: ``r / sigma >= 0``, of any shape.
        alpha: Error probability of each bound.
        bound: Which one.

    Returns:
        float64, the leading shape of ``counts`` followed by the shape of ``c``.
    """
    counts, c = np.asarray(counts, np.int64), np.asarray(c, np.float64)
    rows = counts.reshape(-1, counts.shape[-1])
    bounds = [bound(rounded_up(row, edges), c, alpha) for row in rows]
    return np.reshape(np.array(bounds, np.float64), counts.shape[:-1] + c.shape)


def lower(
    counts: npt.ArrayLike,
    edges: npt.ArrayLike,
    c: npt.ArrayLike,
    alpha: float,
    bound: Bound = default,
) -> Floats:
    """Lower bounds: ``1 - upper`` of the scores ``1 - s``; NaN counts as 0. See ``upper``."""
    return 1 - upper(*mirrored(counts, edges), c, alpha, bound)
