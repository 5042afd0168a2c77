"""From one input to a data set: how many of its bounds can be wrong at once."""

import numpy as np
from scipy import special


def failures(point_alpha: float, count: int, alpha: float) -> int:
    r"""The smallest f with ``P(Bin(count, point_alpha) > f) <= alpha``.

    Claim: if each of ``count`` bounds is wrong with probability at most ``point_alpha``, and their
    noise is independent, then more than f are wrong with probability at most ``alpha``.
    Proof: the number of wrong ones is a sum of independent Bernoulli variables, each stochastically
    below Bernoulli(point_alpha); so the sum is below Bin(count, point_alpha).
    """
    allowed = np.arange(count + 1)
    tail = special.betainc(allowed + 1, np.maximum(count - allowed, 1), point_alpha)
    tail[-1] = 0.0
    return int(np.argmax(tail <= alpha * (1 - 1e-10)))
