"""Bounds on a smoothed mean through an upper band of the survival function of the score.

With S(t) = P(s(x + sigma Z) > t), ``E s(x + delta) <= integral_0^1 shift(S(t), c) dt``: the left
side is the integral of the survival function at x + delta, which at each t is a smoothed indicator.
(Kumar et al. 2020, arXiv 2009.08061.) By Jensen's inequality, shift being concave, this is never
more than shift(E s(x + sigma Z), c).
"""

from functools import lru_cache

import numpy as np

from gradood.arrays import Floats, Ints
from gradood.smoothing.bounds import binomial
from gradood.smoothing.bounds.histogram import Sample


def dkw(sample: Sample, c: Floats, alpha: float) -> Floats:
    r"""``integral_0^1 shift(min(1, S_n(t) + e), c) dt`` with ``e = sqrt(ln(1 / alpha) / 2n)``.

    S_n(t) is the share of scores above t. Claim: P(dkw(...) < sup E s(x + delta)) <= alpha.
    Proof: S(t) = P(s(x + sigma Z) > t) <= S_n(t) + e for all t at once but for an event of
    probability alpha <= 1/2 (Massart 1990); then as above.
    """
    if alpha > 0.5:
        return np.ones_like(c)
    band = sample.above() / sample.n + np.sqrt(np.log(1 / alpha) / (2 * sample.n))
    return integral(sample.values, np.minimum(band, 1), c)


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
    return integral(values[::-1], np.append(1, band[::-1]), c)


@lru_cache(maxsize=64)
def _rank_band(n: int, alpha: float) -> tuple[Ints, Floats]:
    """Ranks from the top, ascending, uniform in logit(rank / (n + 1)), and the band there."""
    wanted = 128 if n <= 10_000 else 512
    logits = np.linspace(-np.log(n), np.log(n), 4 * wanted)
    ranks = np.unique(np.clip(np.round((n + 1) / (1 + np.exp(-logits))), 1, n).astype(np.int64))
    if len(ranks) > wanted:
        ranks = ranks[np.unique(np.linspace(0, len(ranks) - 1, wanted).round().astype(int))]
    return ranks, binomial.upper(ranks - 1, n, alpha / len(ranks))


def integral(values: Floats, survival: Floats, c: Floats) -> Floats:
    """``integral_0^1 shift(survival(t), c) dt`` of a step function; ``[A]``, ``[A + 1]`` -> like c.

    survival[0] holds below values[0], survival[i + 1] from values[i] on; values ascend.
    """
    shifted = binomial.shift(survival, np.asarray(c)[..., None])
    return np.minimum(shifted @ np.diff(values, prepend=0, append=1), 1.0)
