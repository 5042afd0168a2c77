"""The threshold that keeps false alarms on normal inputs at a chosen rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gradood.arguments import checked
from gradood.errors import InputError


@dataclass(frozen=True)
class Calibration:
    """How a threshold was chosen.

    Attributes:
        fpr: Accepted false positive rate.
        inputs: How many normal ones it was chosen by.
    """

    fpr: float
    inputs: int


def fewest_inputs(fpr: float) -> int:
    """How many normal inputs a threshold for ``fpr`` needs at least, ``ceil(1 / fpr - 1)``."""
    return math.ceil(1 / fpr - 1)


@checked
def conservative_threshold(scores: Tensor, fpr: float) -> float:
    """The k-th smallest of n normal scores, ``k = ceil((n + 1)(1 - fpr))``.

    A new normal score, exchangeable with these, lies strictly above it with probability at most
    ``fpr``: no distribution is assumed, ties included (split conformal prediction, Vovk et al.,
    2005). The rate is over the draw of the n scores too; for one fixed draw the false positive rate
    varies around ``fpr`` with standard deviation of about ``sqrt(fpr (1 - fpr) / n)``.

    Args:
        scores: ``[n]``, scores of normal inputs that the detector was not fitted on.
        fpr: False positive rate in (0, 1).

    Raises:
        InputError: ``fpr`` is outside (0, 1), n is below ``1 / fpr - 1``, or so many scores are
            infinite or NaN that the threshold would be.
    """
    if not 0 < fpr < 1:
        raise InputError(f"fpr = {fpr}; expected a false positive rate in (0, 1)")
    n = scores.numel()
    # Equal to ceil((n + 1)(1 - fpr)), without the rounding of 1 - fpr.
    rank = n + 1 - math.floor((n + 1) * fpr)
    if rank > n:
        raise InputError(
            f"{n} normal inputs are too few to calibrate fpr = {fpr}; "
            f"at least {fewest_inputs(fpr)} are needed"
        )
    # NaN sorts last, as if it were the most anomalous.
    threshold = float(scores.sort().values[rank - 1])
    if not math.isfinite(threshold):
        unusable = int((~scores.isfinite()).sum())
        raise InputError(
            f"{unusable} of {n} normal scores are not finite, more than fpr = {fpr} allows; "
            "remove the inputs that hold NaN or Inf"
        )
    return threshold
