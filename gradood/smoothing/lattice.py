r"""Noise on the integer lattice: certificates that floating-point rounding cannot make false.

In floating point ``x + sigma Z`` is rounded, and with it the theorem's premise: what the model sees
is not a function of the real sum, and shows traces of x (Voracek and Hein, "Sound randomized
smoothing in floating-point arithmetic", 2022, arXiv 2207.07209). Here is one that is.

Let G round every number to the nearest multiple of 1/255, and let h(v) = f(G(v)) for the model f.
h is a function of the real vector v, so the lemma of Neyman and Pearson holds for h(x' + sigma Z)
at every real x' (``bounds.binomial.shift``). At an x of multiples of 1/255, and almost surely,
``G(x + sigma Z) = x + k / 255`` with independent integers ``k = round(255 sigma Z)``, so that

    P(h(x + sigma Z) = c) = P(f((255 x + k) / 255) = c),   P(k <= j) = Phi((j + 1/2) / (255 sigma)).

The sum of integers is exact, and the model's input a function of it. The integers are drawn by
comparing 53 random bits u with ``T_j = floor(2^53 Phi((j + 1/2) / (255 sigma)))``: k <= j exactly
if u < T_j. Phi is computed to well within 2^-49 (tested), so P(k <= j) is off by at most 2^-48.

Claim: the vector of d integers is within total variation ``d 2 J 2^-48`` of the ideal one, J the
number of thresholds.
Proof: of one integer, the distance is half the sum of |differences of probabilities|, each at most
the sum of the errors of two neighbouring thresholds, so at most J 2^-48; beyond the outermost, at
12 standard deviations, less than 2^-100 is missing, for which the factor 2 is room. The d integers
are independent, and their distances add up (coupling).

Hence the true probability of any event is within that distance, ``slack``, of the one that is
sampled, and every bound of a probability is widened by it. What remains assumed is that Philox's
words are independent and uniform.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from gradood.errors import InputError
from gradood.ops.philox import channels_and_elements, noise_words

LEVELS = 255
_BITS = 53
_REACH = 12.0
_ERROR = 2.0**-48
#: Largest distance of an input from the lattice, in steps, that float32 rounding can explain.
_OFF_GRID = 1e-3
#: Streams of integers, beside those of normals.
_TAGS = 1 << 16


class Lattice:
    """Inputs as integers, and their noisy copies.

    Args:
        x: ``[N, ...]``, multiples of 1/255 up to float32 rounding.
        sigma: Standard deviation, in units of x.

    Raises:
        InputError: x is not on the lattice.
    """

    def __init__(self, x: Tensor, sigma: float) -> None:
        steps = x.double() * LEVELS
        self._steps = steps.round().long()
        if len(x) and float((steps - self._steps).abs().max()) > _OFF_GRID:
            raise InputError(
                "exact_grid needs inputs that are multiples of 1/255, as 8-bit pictures divided by "
                "255 are; leave it off, or round x to them"
            )
        scale = LEVELS * sigma
        self._reach = int(np.ceil(_REACH * scale))
        positions = np.arange(-self._reach, self._reach) + 0.5
        thresholds = np.floor(ndtr(positions / scale) * 2.0**_BITS).astype(np.int64)
        self._thresholds = torch.from_numpy(thresholds).to(x.device)
        numbers = int(np.prod(x.shape[1:]))
        #: How far the probability of any event can be from the one that is sampled.
        self.slack = numbers * 2 * len(thresholds) * _ERROR

    def copies(self, rows: Tensor, inputs: Tensor, samples: Tensor, key: Tensor) -> Tensor:
        """float32 ``[M, ...]``: ``(255 x + k) / 255``, k by two words of Philox a number."""
        shape = tuple(self._steps.shape[1:])
        channels, elements = channels_and_elements(shape)
        stream = torch.stack([key[0], key[1] + _TAGS])
        words = noise_words((channels, 2 * elements), inputs, samples, stream)
        pairs = words.flatten(2)[..., : 2 * elements].view(len(rows), -1, 2)
        bits = (pairs[..., 0] << 21) | (pairs[..., 1] >> 11)
        noise = torch.searchsorted(self._thresholds, bits, right=True) - self._reach
        return (self._steps[rows] + noise.view(len(rows), *shape)).float() / LEVELS
