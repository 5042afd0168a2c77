"""Bound how far scores spread under noise: the interquartile range everywhere near an input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from gradood.arguments import checked
from gradood.errors import InputError
from gradood.smoothing.evidence import Evidence, JsonObject, Run, check_radii
from gradood.smoothing.inference import Score
from gradood.smoothing.quantiles import bounds_of, count_scores
from gradood.smoothing.settings import Smoothing

#: Three quartiles, from below and from above.
_BOUNDS = 6


@dataclass(frozen=True)
class SpreadCertificates:
    """For each of N inputs and R radii, bounds of median and spread within that radius.

    Attributes:
        spread_lower: Float64 ``[N, R]``, of the interquartile range, at least 0.
        spread_upper: Float64 ``[N, R]``, +inf where n samples cannot bound it.
        lower: Float64 ``[N, R]``, of ``median + weight * spread``, -inf where there is no bound.
        upper: Float64 ``[N, R]``, of it.
        score: Float64 ``[N]``: ``median + weight * spread`` of the samples themselves; no bound.
        radius: Float64 ``[R]``, l2, in units of the input.
        samples: Int64 ``[N]``, all samples used, those that chose the edges included.
        evidence: What was counted; ``evidence.write(path)`` writes it for others to check.
    """

    spread_lower: Tensor
    spread_upper: Tensor
    lower: Tensor
    upper: Tensor
    score: Tensor
    radius: Tensor
    samples: Tensor
    evidence: Evidence


@checked
def certify_spread(
    score: Score,
    x: Tensor,
    settings: Smoothing,
    *,
    radius: float | Sequence[float] | Tensor = 0.0,
    weight: float = 1.0,
    ids: Sequence[int] | Tensor | None = None,
    state: str | Path | None = None,
    more: int | None = None,
) -> SpreadCertificates:
    """Bound the spread of ``score(x + delta + sigma Z)`` for every ``|delta|_2 <= radius``.

    The spread is the interquartile range ``q_3/4 - q_1/4``, and the detector ``median + weight *
    spread``: what is strange often scatters under noise where what is familiar does not. Each
    quartile is bounded from both sides as by ``certify_quantile``, at alpha / 6 each; so with
    probability 1 - alpha, for one input and one radius, all six hold, and with them::

        max(0, lower_3/4 - upper_1/4) <= spread <= upper_3/4 - lower_1/4

    and the same of the detector. Lower bounds of anomalous and upper bounds of normal inputs go
    into ``evaluate_guaranteed`` as those of a quantile do. The quartiles at radius r are those of
    one perturbation, but the bounds allow a perturbation of its own for each: so less is guaranteed
    of this detector than of the median. A high quantile by ``certify_quantile`` also grows with the
    spread, and is bounded by one order statistic.

    Args:
        score: A detector, or ``[T, ...] -> [T]``.
        x: ``[N, ...]``, finite.
        settings: Noise, confidence and precision.
        radius: One l2 radius or several, in units of the input.
        weight: Of the spread in the detector, at least 0.
        ids: As for ``certify_quantile``.
        state: As for ``certify_quantile``.
        more: As for ``certify_quantile``.

    Raises:
        InputError: An argument is wrong.
        NotFittedError: The detector is not fitted.
        ModelError: The score's result is not ``[T]``, its rows influence one another, or weights
            changed on the way.
        CheckpointError: ``state`` belongs to another run.
    """
    if not 0 <= weight < math.inf:
        raise InputError(f"weight = {weight}; expected a number from 0 on")
    target = {"radius": check_radii(radius), "weight": weight}
    run = Run("spread", score, x, settings, target, ids, state, more)
    evidence = run.evidence(count_scores(run), certificate_from)
    names = ("spread_lower", "spread_upper", "lower", "upper")
    return SpreadCertificates(
        **evidence.columns(*names, each_radius=True),
        **evidence.columns("score"),
        radius=evidence.radii,
        samples=evidence.samples,
        evidence=evidence,
    )


def certificate_from(common: JsonObject, row: JsonObject) -> JsonObject:
    """The bounds of one input, from its counts."""
    share, weight = common["settings"]["alpha"] / _BOUNDS, common["target"]["weight"]
    (low1, up1), (low2, up2), (low3, up3) = (
        bounds_of(common, row, q, share) for q in (0.25, 0.5, 0.75)
    )
    with np.errstate(invalid="ignore"):  # infinite scores have no difference
        least = np.nan_to_num(np.maximum(low3 - up1, 0.0), nan=0.0, posinf=np.inf)
        most = np.nan_to_num(up3 - low1, nan=np.inf, posinf=np.inf)
        lower = low2 + weight * least
        upper = up2 + (weight * most if weight else 0.0)
    return {
        "spread_lower": least.tolist(),
        "spread_upper": most.tolist(),
        "lower": np.nan_to_num(lower, nan=-np.inf, posinf=np.inf, neginf=-np.inf).tolist(),
        "upper": np.nan_to_num(upper, nan=np.inf, posinf=np.inf, neginf=-np.inf).tolist(),
        "score": _plain(row, weight),
    }


def _plain(row: JsonObject, weight: float) -> float:
    """Median and spread of the samples: upper edges of their columns, the last finite one at most.

    Scores that are NaN count as the largest.
    """
    edges = np.append(np.asarray(row["edges"], np.float64), np.inf)
    if len(edges) > 1:
        edges[-1] = edges[-2]
    ends = np.cumsum(row["counts"])
    ranks = np.ceil(np.array([0.25, 0.5, 0.75]) * row["samples"])
    columns = np.minimum(np.searchsorted(ends, ranks), len(edges) - 1)
    first, median, third = edges[columns].tolist()
    return float(median + weight * (third - first))
