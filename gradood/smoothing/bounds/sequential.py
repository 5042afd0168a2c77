"""Stop as soon as the answer is clear: an e-value test of "the probability is above p0"."""

import numpy as np
import numpy.typing as npt
from scipy import special

from gradood.smoothing.bounds import binomial

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: What ``decide`` answers.
FUTILE, GO_ON, CERTIFY = -1, 0, 1


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


def decide(
    successes: npt.ArrayLike,
    n: npt.ArrayLike,
    p0: npt.ArrayLike,
    alpha: float,
    futility: float = 0.02,
    n_max: int | None = None,
) -> Ints:
    r"""Whether to certify "p > p0", to give up, or to go on sampling.

    ``CERTIFY`` if ``E_N >= 2 / alpha`` at any N, or if at ``N = n_max`` the Clopper-Pearson lower
    bound at alpha / 2 is above p0. ``FUTILE`` if the reverse e-value, against p >= p0, reaches
    1 / futility, or if n_max is reached without a certificate. Else ``GO_ON``.

    Claim: if p <= p0, the probability of ever answering CERTIFY is at most alpha: alpha / 2 from
    ``log_evalue`` over all N, alpha / 2 from ``binomial.lower`` at the one fixed N. FUTILE claims
    nothing, so ``futility`` costs power only: it is the largest probability of giving up, before
    n_max, on an input with p > p0.

    Args:
        successes: Counts, any shape.
        n: Trials so far, broadcast.
        p0: What p must exceed, broadcast: ``Phi(r / sigma)`` for a majority within r.
        alpha: Error probability of the whole test.
        futility: Probability of giving up on an input that deserves a certificate; 0 for never.
        n_max: Where sampling ends; None for no end, whose alpha / 2 is then not used.

    Returns:
        int64 of the broadcast shape.
    """
    a, n, p0 = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (successes, n, p0)))
    certified = log_evalue(a, n, p0) >= np.log(2 / alpha)
    futile = np.zeros_like(certified)
    if futility > 0:
        futile = log_evalue(n - a, n, 1 - p0) >= np.log(1 / futility)
    if n_max is not None:
        last = n >= n_max
        certified |= last & (binomial.lower(a, n, alpha / 2) > p0)
        futile |= last
    return np.where(certified, CERTIFY, np.where(futile, FUTILE, GO_ON)).astype(np.int64)
