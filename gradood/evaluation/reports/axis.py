"""The axis of scores, which have no common unit and long tails."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradood.arrays import Floats


class Squash(NamedTuple):
    """``asinh((score - middle) / spread)``: even around the bulk, logarithmic beyond."""

    middle: float
    spread: float

    @classmethod
    def of(cls, scores: Floats) -> Squash:
        """By the median and the interquartile range."""
        low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75])
        whole = scores.max() - scores.min()
        # Half of the scores may be equal, or nearly so, or all.
        spread = (high - low) or whole / 10 or max(abs(middle), 1.0) / 10
        return cls(float(middle), float(max(spread, 1e-6 * whole)))

    def forward(self, scores: npt.ArrayLike) -> Floats:
        """Scores -> places on the axis."""
        squashed: Floats = np.arcsinh((np.asarray(scores, np.float64) - self.middle) / self.spread)
        return squashed

    def inverse(self, places: npt.ArrayLike) -> Floats:
        """Places on the axis -> scores."""
        scores: Floats = np.sinh(np.asarray(places, np.float64)) * self.spread + self.middle
        return scores

    def edges(self, low: float, high: float, count: int = 48) -> Floats:
        """Edges of ``count`` bins, evenly spaced on the axis, that hold ``low`` and ``high``."""
        first, last = self.forward([low, high])
        margin = 0.5 if first == last else 1e-6 * (last - first)
        edges = self.inverse(np.linspace(first - margin, last + margin, count + 1))
        found: Floats = np.maximum.accumulate(edges)
        return found
