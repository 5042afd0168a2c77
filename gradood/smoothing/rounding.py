r"""The error of floating point against the theorem: one number that every bound includes.

In floating point ``x + sigma Z`` is rounded, and with it the theorem's premise: what the model sees
is not a function of the real sum, and shows traces of x (Voracek and Hein, "Sound randomized
smoothing in floating-point arithmetic", 2022, arXiv 2207.07209). Here it is one.

Let G round every number to the nearest multiple of g, the grid's step, and let h(v) = f(G(v)) for
the model f, with its clamp and its precision. h is a function of the real vector v, so the lemma of
Neyman and Pearson holds for h(x' + sigma Z) at every real x'. The sampled copies are
``G(x + sigma Z)`` but for rounding in float64, which matters only where ``x + sigma Z`` lies almost
between two multiples of g (``ops.grid``). ``docs/certificates.md`` proves the

Claim: with probability at least ``1 - d tau`` all d numbers of a copy are those of the ideal one,
for ``|x| <= X`` and ::

    tau = 2^-44 sigma / g + 2^-42 + 2^-49 X (1 / g + 1.6 / sigma)

So the true probability of any event is within ``slack = d tau`` of the sampled one, every bound of
a probability is widened by it, and every bound of a mean by what a shift makes of it. What remains
assumed is that Philox's words are independent and uniform, and that arithmetic is IEEE 754's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradood.arrays import Floats

#: Steps of the grid of 8-bit pictures in 1.
BYTES = 255.0


def levels(sigma: float, exact_grid: bool) -> float:
    """``1 / g``: 255, or the power of two that makes ``sigma / g`` at least 128, below 256.

    Too fine to change a model's results, and coarse enough that rounding rarely matters.
    """
    return BYTES if exact_grid else 2.0 ** min(7 - math.floor(math.log2(sigma)), 1000)


def slack(settings: Mapping[str, Any], shape: Sequence[int], magnitude: npt.ArrayLike) -> Floats:
    """``d tau``, at most 1.

    Args:
        settings: ``sigma`` and ``exact_grid``.
        shape: Of an input; d is its product.
        magnitude: X, the largest absolute number of an input; any shape.
    """
    sigma, steps = settings["sigma"], levels(settings["sigma"], settings["exact_grid"])
    each = 2.0**-44 * sigma * steps + 2.0**-42
    each = each + 2.0**-49 * np.asarray(magnitude, np.float64) * (steps + 1.6 / sigma)
    return np.asarray(np.minimum(math.prod(shape) * each, 1.0))
