"""Stop as soon as the answer is clear: an e-value test of "the probability is above p0"."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from gradood.arrays import Floats, Ints
from gradood.smoothing.bounds import binomial

#: What ``decide`` answers.
FUTILE, GO_ON, CERTIFY = -1, 0, 1
#: Samples between two looks, at most.
MOST = 32
#: Probabilities that the exact calculation leaves out, and counts as crossings.
_NEGLIGIBLE = 1e-30


def block_at(start: int, tile: int) -> int:
    """Samples between the look at ``start`` and the next: few at first, never more than a tile.

    The clearest inputs need some fifty samples: looking often there saves what looking every 32
    would waste, and costs nothing, for the test may look as often as it likes.
    """
    for until, size in ((40, 8), (128, 4), (512, 8), (2048, 16)):
        if start < until:
            return min(size, tile)
    return min(MOST, tile)


def log_evalue(successes: npt.ArrayLike, n: npt.ArrayLike, p0: npt.ArrayLike) -> Floats:
    r"""Log of the evidence that a success probability p is above p0.

    After A successes in N trials it is ::

        E_N = B(A + 1/2, N - A + 1/2) (1 - I_p0(A + 1/2, N - A + 1/2))
              / [B(1/2, 1/2) (1 - I_p0(1/2, 1/2)) p0^A (1 - p0)^(N - A)]

    Claim: if p <= p0, then P(E_N >= 1 / alpha for some N >= 0) <= alpha.
    Proof: E_N averages the likelihood ratios prod (q / p0)^x ((1 - q) / (1 - p0))^(1 - x) over q
    from a Beta(1/2, 1/2) cut to q > p0. One factor has mean 1 at p = p0 and less below, since it is
    larger at x = 1; so each ratio, and their average, is a nonnegative supermartingale from 1, and
    Ville's inequality holds (Ville 1939; Robbins 1970; Voracek 2024, arXiv 2406.17830). It may be
    looked at after any N, chosen in any way that does not look ahead.

    E_N grows with A. It falls with p0 wherever it is above 2.02: with h = density / tail of the cut
    prior, d log E / d p0 = h (1 - 1 / E) - (A - N p0) / (p0 (1 - p0)), and h <= 1 / (2 sqrt(p0)
    (1 - p0)), for arcsin(s) >= s; so it falls where A - N p0 >= sqrt(p0) / 2. Elsewhere E is at
    most the likelihood ratio of A / N, exp(N d(A / N, p0)): for A <= N - 1 at most
    exp(1 / (4 N (1 - p0))) <= exp(1 / 4), for A = N at most (1 - 1 / (2 N))^-N <= 2.

    Far below p0 the tail underflows and the result is -inf: less evidence than there is.

    Args:
        successes: Counts A, any shape.
        n: Numbers of trials N, broadcast.
        p0: In (0, 1), broadcast.
    """
    a, n, p0 = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (successes, n, p0)))
    half = np.float64(0.5)
    with np.errstate(divide="ignore"):
        tail = np.log(special.betaincc(a + half, n - a + half, p0))
    prior = special.betaln(half, half) + np.log(special.betaincc(half, half, p0))
    likelihood = special.xlogy(a, p0) + special.xlog1py(n - a, -p0)
    evidence = special.betaln(a + half, n - a + half) + tail - prior - likelihood
    return np.asarray(evidence, np.float64)


def lower(successes: npt.ArrayLike, n: npt.ArrayLike, alpha: npt.ArrayLike) -> Floats:
    r"""The smallest p0 with ``E_N < 1 / alpha``: a lower bound of p that holds at all N at once.

    Claim: ``P(lower(A_N, N) > p for some N >= 0) <= alpha``, for alpha <= 0.49.
    Proof: E falls with p0 where it is above 2.02 < 1 / alpha (``log_evalue``), so lower > p only if
    E_N(p) >= 1 / alpha, which happens at some N with probability at most alpha. (Bisection ends
    below the root.)

    So an experiment may be looked at after every sample, and go on until it says what one likes.
    """
    a, n, alpha = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (successes, n, alpha)))
    if (alpha > 0.49).any():
        return np.zeros_like(a)
    low, high = np.zeros_like(a), a / np.maximum(n, 1)
    goal = -np.log(alpha)
    for _ in range(60):
        middle = (low + high) / 2
        inside = (middle > 0) & (middle < 1)
        rejected = inside & (log_evalue(a, n, np.where(inside, middle, 0.5)) >= goal)
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return low


def upper(successes: npt.ArrayLike, n: npt.ArrayLike, alpha: npt.ArrayLike) -> Floats:
    """``1 - lower(n - A, n, alpha)``; see there."""
    return 1 - lower(np.subtract(n, successes), n, alpha)


def first_count(n: npt.ArrayLike, p0: npt.ArrayLike, alpha: npt.ArrayLike) -> Ints:
    """The smallest A with ``E_N >= 1 / alpha``; N + 1 if there is none, as at p0 = 1."""
    n, p0, alpha = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (n, p0, alpha)))
    never = p0 >= 1 - 2.0**-40
    p0 = np.clip(p0, 2.0**-1000, 1 - 2.0**-40)
    low, high = np.floor(n * p0), n + 1
    while (low < high).any():
        middle = np.floor((low + high) / 2)
        inside = np.minimum(middle, n)
        yes = (middle > n) | (log_evalue(inside, n, p0) >= -np.log(alpha))
        low, high = np.where(yes, low, middle + 1), np.where(yes, middle, high)
    return np.where(never, n + 1, high).astype(np.int64)


@lru_cache(maxsize=4096)
def spent(p0: float, alpha: float, n_max: int, tile: int = 1) -> float:
    r"""``P(E_N >= 1 / alpha at a look before n_max)`` at p = p0, which is at most alpha.

    The exact calculation: between two looks, the distribution of A among the runs that have not
    crossed is convolved with a binomial one, and what crosses is taken out. What is cut off below
    (less than 1e-30 a look) is counted as if it crossed.

    Args:
        p0: Of the test.
        alpha: Of the test.
        n_max: The look that is not counted.
        tile: Of the looks, see ``block_at``; 1 looks after every sample.
    """
    looks = [0]
    while looks[-1] < n_max:
        looks.append(min(looks[-1] + block_at(looks[-1], tile), n_max))
    limits = first_count(looks[1:-1], p0, alpha).tolist()
    steps = {size: stats.binom.pmf(np.arange(size + 1), size, p0) for size in range(1, MOST + 1)}
    alive, first, crossed = np.ones(1), 0, 0.0  # alive[i]: P(A = first + i, not crossed)
    for before, here, limit in zip(looks, looks[1:-1], limits, strict=False):
        alive = np.convolve(alive, steps[here - before])
        crossed += float(alive[max(limit - first, 0) :].sum())
        alive = alive[: max(limit - first, 0)]
        low = int(np.searchsorted(alive.cumsum(), _NEGLIGIBLE))
        crossed += float(alive[:low].sum())
        alive, first = alive[low:], first + low
    return min(crossed * (1 + 1e-9), alpha)


@lru_cache(maxsize=1024)
def level(p0: float, alpha: float, n_max: int, tile: int = 1) -> float:
    """How much more than alpha the e-value may be tested at, so that 0.95 alpha is spent.

    Overshoot, looks that are missed and the end at n_max leave a quarter to three quarters of what
    Ville's inequality allows for; the exact calculation says how much. At least alpha, at most
    4 alpha.
    """
    low, high = alpha, 4 * alpha
    for _ in range(9):
        middle = (low * high) ** 0.5
        enough = spent(p0, middle, n_max, tile) <= 0.95 * alpha
        low, high = (middle, high) if enough else (low, middle)
    return low


def left(p0: float, alpha: float, n_max: int, tile: int = 1) -> float:
    """What a test at ``level`` has left for its last look."""
    return max(alpha - spent(p0, level(p0, alpha, n_max, tile), n_max, tile), 0.0)


def _budget(p0: Floats, alpha: Floats, n_max: int, tile: int) -> tuple[Floats, Floats]:
    """``level`` and ``left`` of many tests."""
    pairs, where = np.unique(np.stack([p0.ravel(), alpha.ravel()]), axis=1, return_inverse=True)
    tests = [(limit, share, n_max, tile) for limit, share in pairs.T.tolist()]
    parts = [(level(*test), left(*test)) for test in tests]
    levels, shares = np.array(parts, np.float64).reshape(-1, 2).T
    return levels[where].reshape(p0.shape), shares[where].reshape(p0.shape)


def decide(
    successes: npt.ArrayLike,
    n: npt.ArrayLike,
    p0: npt.ArrayLike,
    alpha: npt.ArrayLike,
    futility: float = 0.02,
    n_max: int | None = None,
    tile: int = 1,
) -> Ints:
    r"""Whether to certify "p > p0", to give up, or to go on sampling.

    ``CERTIFY`` if ``E_N >= 1 / level`` at a look before n_max, or if at ``N = n_max`` the
    Clopper-Pearson lower bound at what is left of alpha is above p0. ``FUTILE`` if the reverse
    e-value, against p >= p0, reaches 1 / futility, or if n_max is reached without a certificate.
    Else ``GO_ON``. Without n_max, level is alpha.

    Claim: if p <= p0, the probability of ever answering CERTIFY is at most alpha.
    Proof: at p = p0 the e-value crosses before n_max with probability ``spent(p0, level)`` <=
    alpha, by an exact calculation, and the bound at n_max is above p0 with probability at most
    ``alpha - spent(p0, level)``. At p < p0 both are less likely: more successes never hinder
    either. Without n_max it is Ville's inequality (``log_evalue``). FUTILE claims nothing, so
    ``futility`` costs power only: it is the largest probability of giving up, before n_max, on an
    input with p > p0.

    Args:
        successes: Counts, any shape.
        n: Trials so far, broadcast.
        p0: What p must exceed, broadcast: ``Phi(r / sigma)`` for a majority within r.
        alpha: Error probability of the whole test, broadcast.
        futility: Probability of giving up on an input that deserves a certificate; 0 for never.
        n_max: Where sampling ends; None for no end.
        tile: Looks are no more frequent than ``block_at(…, tile)``; 1 allows all.

    Returns:
        int64 of the broadcast shape.
    """
    arguments = (successes, n, p0, alpha)
    a, n, p0, goals = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in arguments))
    if n_max is not None:
        goals, shares = _budget(p0, goals, n_max, tile)
    certified = log_evalue(a, n, p0) >= -np.log(goals)
    futile = np.zeros_like(certified)
    if futility > 0:
        futile = log_evalue(n - a, n, 1 - p0) >= np.log(1 / futility)
    if n_max is not None:
        last = n >= n_max
        certified = np.where(last, binomial.lower(a, n, shares) > p0, certified)
        futile = futile | last
    return np.where(certified, CERTIFY, np.where(futile, FUTILE, GO_ON)).astype(np.int64)


def coarse(p0: npt.ArrayLike) -> Floats:
    """p0 rounded up by less than 1 / 4096 of ``1 - p0``: few values, so that few are calculated."""
    mantissa, exponent = np.frexp(1 - np.asarray(p0, np.float64))
    return np.asarray(1 - np.ldexp(np.floor(mantissa * 4096) / 4096, exponent))
