"""Bounds of a probability that hold at all numbers of samples at once.

An e-process holds always, at a quarter of alpha. What is left goes where a bound is most likely to
be read: to the planned number of samples, and a little to each round one. There it is Clopper and
Pearson's, at that share.
"""

import numpy as np
import numpy.typing as npt

from gradood.arrays import Floats
from gradood.smoothing.bounds import binomial, sequential

#: Shares of alpha: of the e-process, of the planned number of samples, and of each round one.
ALWAYS, PLANNED, ROUND = 0.25, 0.6, 0.05
_ROUND_NUMBERS = (1_000, 10_000, 100_000)


def share(n: npt.ArrayLike, planned: int) -> Floats:
    """Share of alpha that a look at n has for itself; they and ``ALWAYS`` add up to 1."""
    n = np.asarray(n)
    return np.asarray(PLANNED * (n == planned) + ROUND * np.isin(n, _ROUND_NUMBERS))


def lower(successes: npt.ArrayLike, n: npt.ArrayLike, alpha: npt.ArrayLike, planned: int) -> Floats:
    r"""The larger of the e-process's bound and, where n has a share, Clopper and Pearson's.

    Claim: ``P(lower(A_N, N) > p for some N >= 0) <= alpha``, for alpha <= 1.
    Proof: ``sequential.lower`` at ``ALWAYS alpha`` is above p at some N with probability at most
    ``ALWAYS alpha``, and ``binomial.lower`` at one N with probability at most ``share(N) alpha``.
    These add up to alpha.

    ``planned`` is fixed beforehand; N may stop short of it, or go beyond it.

    Args:
        successes: Counts A, any shape.
        n: Numbers of trials N, broadcast.
        alpha: Error probability over all N together, broadcast.
        planned: The number of trials at which the bound is to be tightest.
    """
    alpha = np.asarray(alpha, np.float64)
    always = sequential.lower(successes, n, ALWAYS * alpha)
    return np.maximum(always, binomial.lower(successes, n, share(n, planned) * alpha))


def upper(successes: npt.ArrayLike, n: npt.ArrayLike, alpha: npt.ArrayLike, planned: int) -> Floats:
    """``1 - lower(n - A, n, alpha, planned)``; see there."""
    return 1 - lower(np.subtract(n, successes), n, alpha, planned)
