"""Bounds on a probability from a count, and what a perturbation does to a probability."""

import numpy as np
import numpy.typing as npt
from scipy import special

from gradood.arrays import Floats


def lower(successes: npt.ArrayLike, n: npt.ArrayLike, alpha: npt.ArrayLike) -> Floats:
    r"""Clopper-Pearson lower bound: the ``p`` with ``P(Bin(n, p) >= k) = alpha``, 0 at ``k = 0``.

    Claim: for k successes in n independent trials of success probability p,
    ``P(lower(k) > p) <= alpha``.
    Proof: lower(k) grows with k, so the claim fails exactly if k >= k*, the smallest count with
    lower(k*) > p. P(Bin(n, q) >= k*) grows with q and is alpha at q = lower(k*) > p, so it is at
    most alpha at p. That q is the alpha quantile of Beta(k, n - k + 1), for
    ``P(Bin(n, q) >= k) = I_q(k, n - k + 1)``. (Clopper and Pearson 1934.)

    Args:
        successes: Counts ``k``, any shape.
        n: Numbers of trials, broadcast against ``successes``.
        alpha: Error probabilities, broadcast.

    Returns:
        float64 of the broadcast shape.
    """
    k, n, alpha = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in (successes, n, alpha)))
    some = k > 0
    bound = special.betaincinv(np.where(some, k, 1), np.where(some, n - k + 1, 1), alpha)
    return np.where(some, bound, 0.0)


def upper(successes: npt.ArrayLike, n: npt.ArrayLike, alpha: npt.ArrayLike) -> Floats:
    """Clopper-Pearson upper bound: ``1 - lower(n - k, n, alpha)``, 1 at ``k = n``.

    Claim: ``P(upper(k) < p) <= alpha``. Proof: the failures are Bin(n, 1 - p); see ``lower``,
    whose arguments these are.
    """
    return 1.0 - lower(np.subtract(n, successes), n, alpha)


def shift(p: npt.ArrayLike, c: npt.ArrayLike) -> Floats:
    r"""How far a smoothed value can move: ``Phi(Phi^-1(p) + c)``; exactly 0 at 0 and 1 at 1.

    Claim: for h: R^d -> [0, 1], possibly random but independently of its argument, with
    ``H(x) = E h(x + sigma Z)``, Z standard normal, and any ``|delta|_2 <= r``::

        shift(H(x), -r / sigma) <= H(x + delta) <= shift(H(x), r / sigma)

    Proof: of all h with E h(x + sigma Z) = p, by Neyman and Pearson's lemma the one with the
    largest value at x + delta thresholds the likelihood ratio of the two normals, so it is the
    indicator of a half-space {z : <delta, z> >= t}. For that one the value is
    Phi(Phi^-1(p) + |delta| / sigma), which grows with |delta|. The lower side is this for 1 - h.
    (Cohen et al. 2019, theorem 1; Salman et al. 2019, lemma 2.) Tight for half-spaces.

    Args:
        p: Values in [0, 1], any shape.
        c: ``r / sigma``, broadcast; negative for the lower side. ``c = 0`` returns ``p``.
    """
    p, c = np.broadcast_arrays(np.asarray(p, np.float64), np.asarray(c, np.float64))
    return np.where(c == 0, p, special.ndtr(special.ndtri(p) + c))
