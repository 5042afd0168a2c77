"""Bounds on the smoothed mean of a score in [0, 1], at and near the input.

A bound is a function ``(sample, c, alpha) -> values like c``: with probability at least 1 - alpha
over the sample, the smoothed score is at most that everywhere within ``r = c sigma``. ``upper``
and ``lower`` apply one to histograms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from gradood.arrays import Bools, Floats
from gradood.smoothing.bounds import anytime, binomial
from gradood.smoothing.bounds.band import dkw, integral, rank
from gradood.smoothing.bounds.histogram import Sample, mirrored, rounded_up

Bound = Callable[[Sample, Floats, float], Floats]

#: Fractions of the largest bet. Small ones serve large n, those near 1 small variances.
_BETS = np.concatenate([0.5 ** np.arange(12, 0, -1), 1 - 0.25 ** np.arange(1, 6)])
#: The pilot is this times n^-0.2 of the sample: a quarter of 100 scores, a tenth of 10k.
_PILOT = 0.63
_SPLITS = 4

__all__ = [
    "Bound",
    "always",
    "betting",
    "default",
    "dkw",
    "kl",
    "lower",
    "rank",
    "tangent",
    "upper",
]


def kl(sample: Sample, c: Floats, alpha: float) -> Floats:
    r"""Chernoff's bound inverted: the largest m with ``n d(mean, m) <= ln(1 / alpha)``, shifted.

    Claim: P(kl(...) < sup E s(x + delta)) <= alpha; d(p, q) is the divergence of two Bernoullis.
    Proof: E exp(t X) <= 1 - mu + mu exp(t) on [0, 1] by convexity, so by Chernoff P(mean <= a) <=
    exp(-n d(a, mu)) for a < mu: the bound is below mu with probability at most alpha.
    ``binomial.shift``, monotone, carries it to x + delta. (Hoeffding 1963, theorem 1.)
    """
    mean, limit = sample.mean, np.log(1 / alpha) / sample.n

    def rejected(m: Floats) -> Bools:
        return np.asarray(special.rel_entr(mean, m) + special.rel_entr(1 - mean, 1 - m) > limit)

    return binomial.shift(_smallest(rejected, np.array(mean)), c)


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

    It holds at all n at once: as scores come in, the wealth at mu is a nonnegative martingale from
    1, and by Ville's inequality it ever reaches 1 / alpha with probability at most alpha.
    """
    values, counts = sample.values, sample.counts
    goal = np.log(len(_BETS) / alpha)

    def rejected(m: Floats) -> Bools:
        gains = np.log1p(_BETS[:, None] * ((m - values) / (1 - m))) @ counts
        return np.asarray(np.logaddexp.reduce(gains) >= goal)

    return binomial.shift(_smallest(rejected, np.array(sample.mean)), c)


def _smallest(rejected: Callable[[Floats], Bools], low: Floats) -> Floats:
    """The smallest rejected m in [low, 1], from above and to 1e-4 of its distance from low."""
    start, high = low, np.ones_like(low)
    for _ in range(60):  # as far as float64 can tell numbers apart
        if (high - low <= 1e-4 * (high - start)).all():
            break
        middle = np.minimum((low + high) / 2, 1 - 2**-53)
        yes = rejected(middle)
        low, high = np.where(yes, low, middle), np.where(yes, middle, high)
    return high


def tangent(sample: Sample, c: Floats, alpha: float) -> Floats:
    r"""Bet against the mean that the shifted distribution would have: no band, one variance.

    With g(s) = shift(s, c) and a guess S0 of the survival function, from a pilot sample alone::

        h(x) = integral_0^x g'(S0(t)) dt      C = integral_0^1 g(S0) - g'(S0) S0 dt
        wealth(m) = prod_i [1 + b (m - C - h(X_i))],   b = min(b0, 1 / (h(1) - m + C))

    over the other samples, with b0 fixed by the pilot. The bound is the smallest m at which the
    mean wealth of a few such splits is 1 / alpha.

    Claim: P(tangent(...) < sup E s(x + delta)) <= alpha, for each c by itself.
    Proof: g is concave and lies below its tangents: g(S) <= g(S0) + g'(S0) (S - S0). Integrated,
    E s(x + delta) <= integral g(S) dt <= C + integral g'(S0) S dt = C + E h(X) =: mu. At m = mu,
    given the pilot, the factors are independent of mean 1, and nonnegative since h <= h(1). So the
    wealth, and the mean of several, has mean at most 1 at the truth and reaches 1 / alpha with
    probability at most alpha (Markov). Wealth grows with m, so the bound is below the truth only
    then. Coins that know nothing of the scores choose the pilot (``Sample.split``), which leaves
    the others independent of it. h is the influence function of integral g(S) dt at S0: the bound
    is as wide as the mean of h varies, where a band pays for every threshold at once.
    """
    bets = _Bets.on(sample, np.ravel(c), alpha)
    goal = np.log(_SPLITS / alpha)

    def rejected(m: Floats) -> Bools:
        return np.asarray(np.logaddexp.reduce(bets.log_wealth(m)) >= goal)

    estimate = integral(sample.values, sample.above() / sample.n, np.ravel(c))
    return np.reshape(_smallest(rejected, estimate), np.shape(c))


class _Bets(NamedTuple):
    """The formulas of ``tangent``, for S splits and C values of c at once."""

    constant: Floats  # [S, C]
    top: Floats  # [S, C], h(1)
    below: Floats  # [S, C, A], h(1) - h
    size: Floats  # [S, C], b0
    rest: Floats  # [S, A, 1], counts outside the pilot

    @classmethod
    def on(cls, sample: Sample, c: Floats, alpha: float) -> _Bets:
        needed, n = np.log(1 / alpha), sample.n
        pilot = sample.split(_PILOT * n**-0.2, _SPLITS)
        # Half a score at 1, and a tail that n samples cannot exclude: near S0 = 0 slopes are steep.
        weights = np.concatenate([pilot, np.full((_SPLITS, 1), 0.5)], 1)
        weights /= weights.sum(1, keepdims=True)
        above = 1 - weights.cumsum(1) + weights
        guess = np.clip(above + needed / n, needed / n, 1 - 1e-9)[:, None]  # [S, 1, A + 1]
        widths = np.diff(sample.values, prepend=0, append=1)
        c = c[:, None]
        slope = np.exp(-c * special.ndtri(guess) - c * c / 2)
        constant = (binomial.shift(guess, c) - slope * guess) @ widths
        h = np.cumsum(slope * widths, 2)
        centred = h - h @ weights[:, :, None]
        variance = (centred**2 @ weights[:, :, None])[..., 0]
        size = np.sqrt(2 * needed / (n * np.maximum(variance, 1e-300)))
        rest = (sample.counts - pilot)[:, :, None].astype(np.float64)
        return cls(constant, h[..., -1], h[..., -1:] - h[..., :-1], size, rest)

    def log_wealth(self, m: Floats) -> Floats:
        room = self.top - m + self.constant
        possible = room > 0  # else m asks for more than E h can be: the wealth is unlimited
        room = np.where(possible, room, 1.0)
        bet = np.minimum(self.size, (1 - 1e-9) / room)
        gains = np.log1p(bet[..., None] * (self.below - room[..., None])) @ self.rest
        return np.where(possible, gains[..., 0], np.inf)


def default(sample: Sample, c: Floats, alpha: float) -> Floats:
    """The smaller of ``betting`` and ``tangent``, each at alpha / 2, so that both hold.

    In simulations (``benchmarks/results/bounds.md``) the excess over the truth is 0.96, 0.83 and
    0.72 times that of the best of ``kl``, ``betting``, ``dkw`` and ``rank`` at full alpha, for
    n = 100, 1k and 10k.
    """
    return np.minimum(betting(sample, c, alpha / 2), tangent(sample, c, alpha / 2))


def always(sample: Sample, c: Floats, alpha: float, planned: int) -> Floats:
    """``betting``, which holds at all n at once; where n has a share of alpha, also ``default``.

    Claim: P(always(...) < sup E s(x + delta) at some n) <= alpha, for each c by itself.
    Proof: as for ``anytime.lower``: ``betting`` at ``anytime.ALWAYS alpha`` is too small at some n
    with probability at most that, ``default`` at one n with at most ``anytime.share(n) alpha``.
    """
    bound = betting(sample, c, anytime.ALWAYS * alpha)
    own = float(anytime.share(sample.n, planned)) * alpha
    return np.minimum(bound, default(sample, c, own)) if own > 0 else bound


def upper(
    counts: npt.ArrayLike,
    edges: npt.ArrayLike,
    c: npt.ArrayLike,
    alpha: float,
    bound: Bound = default,
    seed: npt.ArrayLike = 0,
) -> Floats:
    """Upper bounds of the smoothed score within ``c sigma``, from histograms.

    Claim: as ``bound``'s. Scores are rounded up to their edges, NaN to 1, which raises the mean.

    Args:
        counts: Int64 ``[..., K + 2]``, columns as in ``histogram``.
        edges: ``[K]``, ascending, in [0, 1].
        c: ``r / sigma >= 0``, of any shape.
        alpha: Error probability of each bound.
        bound: Which one.
        seed: Integers in [0, 2^32), broadcast over the leading shape of ``counts``: of the coins of
            ``tangent``. Different ones, such as the ids of the inputs, keep errors independent.

    Returns:
        float64, the leading shape of ``counts`` followed by the shape of ``c``.
    """
    counts, c = np.asarray(counts, np.int64), np.asarray(c, np.float64)
    rows = counts.reshape(-1, counts.shape[-1])
    seeds = np.broadcast_to(np.asarray(seed), counts.shape[:-1]).ravel()
    samples = (rounded_up(row, edges, int(one)) for row, one in zip(rows, seeds, strict=True))
    bounds = [bound(sample, c, alpha) for sample in samples]
    return np.reshape(np.array(bounds, np.float64), counts.shape[:-1] + c.shape)


def lower(
    counts: npt.ArrayLike,
    edges: npt.ArrayLike,
    c: npt.ArrayLike,
    alpha: float,
    bound: Bound = default,
    seed: npt.ArrayLike = 0,
) -> Floats:
    """Lower bounds: ``1 - upper`` of the scores ``1 - s``; NaN counts as 0. See ``upper``."""
    return 1 - upper(*mirrored(counts, edges), c, alpha, bound, seed)
