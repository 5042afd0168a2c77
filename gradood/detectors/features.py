"""Gradient norms -> features: logarithm, then standardised on normal data.

The one place where detectors turn an input into numbers. Squared norms differ between layers by a
factor of 700 and between inputs by 10^5, so detectors read their logarithms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradood.errors import InputError

#: Squared norms below this count as zero: log(1e-12) = -27.6 is far from any live layer, and yet
#: one layer that is sometimes dead on normal data does not drown the others.
FLOOR = 1e-12

#: Standard deviation of a log norm below which a feature is constant up to float32 rounding, as
#: the last bias is under a label and loss that fix its gradient.
CONSTANT = 1e-4

#: The same for features of any unit, as a share of their mean: float32 rounding of a sum.
_ROUNDING = 3e-6

#: Normal inputs that differ from one another, at least: the deviation of fewer may be next to
#: nothing by accident, and every other input millions of deviations away.
FEWEST = 5


def log_norms(values: Tensor) -> Tensor:
    """Squared norms ``[N, L]`` or ``[N, K, L]`` -> natural logarithms, float32 ``[N, K L]``.

    Rows that hold NaN or Inf keep a non-finite value.
    """
    return values.flatten(1).float().clamp_min(FLOOR).log()


def require_finite(features: Tensor, what: str) -> None:
    """Raise InputError, naming the rows, if ``features`` ``[N, F]`` of ``what`` are not finite."""
    rows = (~features.isfinite().all(1)).nonzero().flatten().tolist()
    if rows:
        raise InputError(
            f"the gradient norms of {len(rows)} of {len(features)} {what} are not finite (rows "
            f"{rows[:10]}); remove these inputs before fitting"
        )


def _rounding(mean: Tensor) -> Tensor:
    """By how much features of this mean differ without meaning it."""
    return (_ROUNDING * mean.abs()).clamp_min(CONSTANT)


class Standardiser(NamedTuple):
    """``z = (f - mean) / std`` over the features that vary on normal data.

    Attributes:
        mean: ``[kept features]``.
        std: ``[kept features]``.
        kept: ``[F]`` bool; False for features that are constant on normal data.
    """

    mean: Tensor
    std: Tensor
    kept: Tensor

    @staticmethod
    def fit(features: Tensor, fewest: int = FEWEST) -> Standardiser:
        """Learn from normal ``features`` ``[N, F]``.

        Raises:
            InputError: Fewer than ``fewest`` rows that differ, rows that are not finite, or no
                feature varies.
        """
        if len(features) < fewest:
            raise InputError(
                f"{len(features)} normal inputs are too few to fit on; give {fewest} or more"
            )
        require_finite(features, "normal inputs")
        std, mean = torch.std_mean(features.double(), 0)
        kept = std > _rounding(mean)
        if not kept.any():
            raise InputError(
                "no gradient norm or feature differs between the normal inputs, so there is "
                "nothing to learn; are they all the same input?"
            )
        different = count_different(features, fewest)
        if different < fewest:
            raise InputError(
                f"only {different} of the {len(features)} normal inputs differ, and the others "
                f"repeat them; give {fewest} or more different ones"
            )
        return Standardiser(mean[kept].float(), std[kept].float(), kept)

    def __call__(self, features: Tensor) -> Tensor:
        """``[N, F]`` -> ``[N, kept features]``."""
        return (features[:, self.kept] - self.mean) / self.std


def count_different(features: Tensor, enough: int) -> int:
    """How many rows differ from one another by more than rounding; counts up to ``enough``."""
    count, rounding = 0, _rounding(features.double().mean(0))
    while len(features) and count < enough:
        features = features[((features - features[0]).abs() > rounding).any(1)]
        count += 1
    return count
