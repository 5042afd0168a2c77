"""Bounds of detection metrics over all perturbations of the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gradood.arguments import checked, number_between
from gradood.arrays import Floats
from gradood.errors import InputError
from gradood.evaluation.curves import Scores, as_numbers
from gradood.results import Result
from gradood.smoothing.bounds import dataset
from gradood.smoothing.evidence import Evidence

#: The noise of inputs: evidence of certificates, or ids under one seed.
Noise: TypeAlias = "Evidence | Sequence[int] | Tensor"


@dataclass(frozen=True)
class GuaranteedMetrics(Result):
    """Bounds of ``evaluate``'s metrics, float64 ``[R]``: from below, the last two from above."""

    auroc: Floats
    aupr_anomalous: Floats
    aupr_normal: Floats
    fpr95: Floats
    detection_error: Floats


@dataclass(frozen=True)
class Guarantee(Result):
    """What ``evaluate_guaranteed`` returns.

    Attributes:
        radius: Float64 ``[R]``, in the units of the certificates.
        clean_normals: Anomalous inputs move within the radius, normal ones stay where they are.
        moved_normals: Both move; None if normal bounds were given at radius 0 only.
        alpha: Probability, over the noise, that a bound of the data set is false.
        failures: How many of the inputs' bounds were counted as wrong, the worst ones.
        count_normal: N.
        count_anomalous: M.
    """

    radius: Floats
    clean_normals: GuaranteedMetrics
    moved_normals: GuaranteedMetrics | None
    alpha: float
    failures: int
    count_normal: int
    count_anomalous: int


@checked
def evaluate_guaranteed(
    upper_normal: Scores,
    lower_anomalous: Scores,
    radius: npt.ArrayLike,
    *,
    point_alpha: float,
    alpha: float = 1e-3,
    composition: Literal["bonferroni", "binomial"] = "bonferroni",
    noise: tuple[Noise, Noise] | None = None,
) -> Guarantee:
    r"""Bound the metrics of a smoothed score over every perturbation of every input.

    With upper bounds u of the scores of N normal inputs and lower bounds l of those of M anomalous
    ones, l_1 >= l_2 >= ..., u_1 <= u_2 <= ..., b_i the normal inputs with u >= l_i and c_i the
    anomalous inputs with l <= u_i (ties are losses)::

        auroc           >= 1 - sum_i b_i / (N M)
        aupr_anomalous  >= mean_i i / (i + b_i)
        aupr_normal     >= mean_i i / (i + c_i)
        fpr95           <= b_i / N at the first i >= 0.95 M
        detection_error <= min(1, min_i 1 - i / M + b_i / N) / 2

    Claim: with probability at least 1 - alpha over the noise, at each radius by itself, no choice
    of perturbations within it gives ``gradood.evaluate`` of the smoothed scores a worse value.
    Proof: where all bounds hold, true scores have b_i and c_i no larger, sorted as here, and every
    formula is monotone in them. ``evaluate`` never does worse than these formulas: it counts a tie
    as a half, and gives equal scores the precision of the last of them, the best one. "bonferroni":
    all bounds hold but for (N + M) point_alpha <= alpha. "binomial": at most f = the failures of
    ``bounds.dataset`` do not hold. j wrong lower bounds, at -inf, do most harm at the largest l,
    and f - j wrong upper bounds, at +inf, at the smallest u: any other choice leaves scores that
    are, sorted, no worse. The worst j counts.

    Bounds are of the smoothed score, and so is the guarantee; the base score has none.

    Args:
        upper_normal: ``[N, R]``, upper bounds of normal inputs at each radius, 0 among them; or
            ``[N]``, at radius 0 only. NaN counts as +inf: an input without a bound is a loss.
        lower_anomalous: ``[M, R]``, or ``[M]`` for a single radius. NaN counts as -inf.
        radius: ``[R]``, distinct, at least 0.
        point_alpha: Error probability of each bound passed in; (N + M) of them are used.
        alpha: Error probability of the result.
        composition: "bonferroni" needs ``point_alpha <= alpha / (N + M)``. "binomial" takes any
            ``point_alpha``, and needs independent noise in every input.
        noise: For "binomial", of normal and of anomalous inputs: the evidence of their
            certificates, which says which noise each input had; or their ids, if all certificates
            had one seed.

    Returns:
        ``Guarantee``; shares, not percentages.

    Raises:
        InputError: Shapes do not fit, nothing to evaluate, a radius is negative or occurs twice,
            radius 0 is missing, an alpha is outside (0, 1) or too large for "bonferroni"; for
            "binomial", two inputs had the same noise, or nobody says that they had not.

    Example:
        >>> from gradood.evaluation import evaluate_guaranteed
        >>> result = evaluate_guaranteed([0.1, 0.3], [0.3, 0.9], 0.25, point_alpha=1e-5)
        >>> result.clean_normals.auroc
        array([0.75])
    """
    grid = radii(radius)
    anomalous = as_bounds(lower_anomalous, "lower_anomalous", -np.inf, grid)
    normal = as_bounds(upper_normal, "upper_normal", np.inf, grid)
    count = len(normal) + len(anomalous)
    wrong = _wrong(point_alpha, alpha, count, composition)
    if composition == "binomial":
        check_noise(noise, (len(normal), len(anomalous)))
    still, moved = normal[:, 0], None
    if as_numbers(upper_normal, "upper_normal").ndim == 2:
        if 0 not in grid:
            raise InputError("radius must hold 0 when upper_normal has a column for each radius.")
        still = normal[:, grid == 0][:, 0]
        pairs = zip(normal.T, anomalous.T, strict=True)
        moved = stacked(worst(above, below, wrong) for above, below in pairs)
    clean = stacked(worst(still, below, wrong) for below in anomalous.T)
    return Guarantee(grid, clean, moved, alpha, wrong, len(normal), len(anomalous))


def radii(radius: npt.ArrayLike) -> Floats:
    """``[R]``, checked."""
    grid = np.atleast_1d(as_numbers(radius, "radius"))
    if grid.ndim != 1 or not grid.size or len(np.unique(grid)) < grid.size or not (grid >= 0).all():
        found = grid.tolist()
        raise InputError(f"radius must be distinct numbers of at least 0, shape [R], got {found}.")
    return grid


def as_bounds(bounds: Scores, name: str, missing: float, grid: Floats) -> Floats:
    """``[N, R]``, or ``[N, 1]`` for bounds at one radius; NaN replaced."""
    array = as_numbers(bounds, name)
    if array.ndim == 1 and (name == "upper_normal" or grid.size == 1):
        array = array[:, None]
    elif array.ndim != 2 or array.shape[1] != grid.size:
        shape = list(array.shape)
        raise InputError(f"{name} must have shape [N, {grid.size}] for as many radii, got {shape}.")
    if not len(array):
        raise InputError(f"{name} is empty: there is nothing to evaluate.")
    return np.where(np.isnan(array), missing, array)


def _wrong(point_alpha: float, alpha: float, count: int, composition: str) -> int:
    """How many of the bounds must be taken to be wrong."""
    number_between("alpha", alpha)
    number_between("point_alpha", point_alpha)
    if composition == "binomial":
        return dataset.failures(point_alpha, count, alpha)
    if point_alpha * count > alpha * (1 + 1e-9):
        raise InputError(
            f"{count} bounds, each wrong with probability {point_alpha:g}, give no guarantee at "
            f"alpha = {alpha:g}. Certify with alpha = {alpha / count:.3g}, or pass "
            'composition="binomial" with the evidence that every input had noise of its own.'
        )
    return 0


def check_noise(noise: tuple[Noise, Noise] | None, counts: tuple[int, int]) -> None:
    """Refuse inputs that shared their noise: their bounds would be wrong together."""
    if noise is None:
        raise InputError(
            'composition="binomial" needs independent noise in every input: pass '
            "noise=(normal.evidence, anomalous.evidence) of the certificates"
        )
    used = [_noise_of(part) for part in noise]
    for name, keys, count in zip(("normal", "anomalous"), used, counts, strict=True):
        if len(keys) != count:
            raise InputError(f"noise names {len(keys)} {name} inputs, the bounds are of {count}")
    keys = used[0] + used[1]
    if len(set(keys)) < len(keys):
        seed, number = next(key for key in keys if keys.count(key) > 1)
        raise InputError(
            f"two inputs had the same noise (seed {seed}, id {number}), so that their bounds are "
            "wrong together; certify the sets with ids of their own, or without a seed"
        )


def _noise_of(part: Noise) -> list[tuple[int | None, int]]:
    """Seed and id of every input."""
    if isinstance(part, Evidence):
        seed = part.common["settings"]["seed"]
        return [(seed, row["id"]) for row in part.rows]
    return [(None, int(number)) for number in part]


def worst(normal: Floats, anomalous: Floats, wrong: int) -> GuaranteedMetrics:
    """The worst of each metric over how the wrong bounds are shared out."""
    normal, anomalous = np.sort(normal), np.sort(anomalous)[::-1]
    shares = range(max(0, wrong - len(normal)), min(wrong, len(anomalous)) + 1)
    cases = [
        _metrics(
            np.append(normal[wrong - j :], np.full(wrong - j, np.inf)),
            np.append(anomalous[j:], np.full(j, -np.inf)),
        )
        for j in shares
    ]
    columns = np.array(cases)
    auroc, anomalous_first, normal_first = columns[:, :3].min(0)
    return GuaranteedMetrics(auroc, anomalous_first, normal_first, *columns[:, 3:].max(0))


def _metrics(normal: Floats, anomalous: Floats) -> tuple[float, ...]:
    """The formulas of ``evaluate_guaranteed``; normal ascending, anomalous descending."""
    n, m = len(normal), len(anomalous)
    above = n - np.searchsorted(normal, anomalous, side="left")
    below = np.searchsorted(anomalous[::-1], normal, side="right")
    hits, passed = np.arange(1, m + 1), np.arange(1, n + 1)
    return (
        float(1 - above.sum() / (n * m)),
        float((hits / (hits + above)).mean()),
        float((passed / (passed + below)).mean()),
        float(above[np.argmax(hits / m >= 0.95)] / n),
        float(min(1.0, (1 - hits / m + above / n).min()) / 2),
    )


def stacked(metrics: Iterable[GuaranteedMetrics]) -> GuaranteedMetrics:
    """Metrics of single radii as those of all."""
    columns = zip(*metrics, strict=True)
    return GuaranteedMetrics(*(np.array(column, np.float64) for column in columns))
