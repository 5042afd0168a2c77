"""From scores to operating points, for metrics and plots."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gradood.arrays import Floats, Ints
from gradood.errors import InputError
from gradood.results import Result

Scores = Tensor | npt.ArrayLike


@dataclass(frozen=True)
class RocPoints(Result):
    """One operating point per distinct threshold, from ``(0, 0)`` to ``(1, 1)``.

    Attributes:
        false_positive_rate: Float64 ``[T]``, share of normal inputs called anomalous.
        true_positive_rate: Float64 ``[T]``, share of anomalous inputs called anomalous.
        thresholds: Float64 ``[T]``, descending. A point calls an input anomalous if its score is at
            or above the threshold. The first one, NaN, calls nothing anomalous, which no score
            can express when +inf occurs.
    """

    false_positive_rate: Floats
    true_positive_rate: Floats
    thresholds: Floats

    @property
    def line(self) -> tuple[Floats, Floats]:
        """What a plot draws: x and y."""
        return self.false_positive_rate, self.true_positive_rate


def as_numbers(values: Scores, name: str) -> Floats:
    """A tensor or array, or nested lists, as float64 of any shape.

    Every smaller float type converts exactly, so that ties stay ties.

    Raises:
        InputError: They are no real numbers, or lists of several lengths.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        values = (values.double() if values.is_floating_point() else values).numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{name} must be one list of numbers: {error}") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must be real numbers, got {array.dtype}.")
    return array.astype(np.float64)


def as_scores(scores: Scores, name: str) -> Floats:
    """Scores as float64 ``[N]``.

    Raises:
        InputError: Empty, not one-dimensional, not real numbers, or NaN in it.
    """
    array = as_numbers(scores, name)
    if array.ndim != 1:
        raise InputError(f"{name} must have shape [N], got {list(array.shape)}.")
    if not array.size:
        raise InputError(f"{name} is empty: there is nothing to evaluate.")
    rows = np.flatnonzero(np.isnan(array))
    if rows.size:
        raise InputError(
            f"{name} holds NaN in {rows.size} of {array.size} rows (first: {rows[:5].tolist()}). "
            "Score such inputs +inf, the most anomalous, or leave them out."
        )
    return array


def ranked(normal: Floats, anomalous: Floats) -> tuple[Ints, Floats]:
    """Replace scores by their dense ranks: same order, same ties, and all of them finite.

    Returns:
        ``(ranks [N + M], distinct [R])``: normal scores first; ``distinct[ranks]`` are the scores.
    """
    distinct, ranks = np.unique(np.concatenate((normal, anomalous)), return_inverse=True)
    return ranks.astype(np.int64), distinct


def pr_points(scores_normal: Scores, scores_anomalous: Scores) -> tuple[Floats, Floats]:
    """Recall ``[T]``, ascending, and precision at every threshold; arguments as ``roc_points``.

    The area under the steps that hold each precision back to the recall before it is the average
    precision, ``evaluate(...).aupr_anomalous``.
    """
    points = roc_points(scores_normal, scores_anomalous)
    hits = points.true_positive_rate[1:] * len(as_scores(scores_anomalous, "scores_anomalous"))
    alarms = points.false_positive_rate[1:] * len(as_scores(scores_normal, "scores_normal"))
    return points.true_positive_rate[1:], hits / (hits + alarms)


def roc_points(scores_normal: Scores, scores_anomalous: Scores) -> RocPoints:
    """Every operating point of the detector "anomalous if score >= threshold".

    Args:
        scores_normal: ``[N]``, higher = more anomalous; ±inf allowed.
        scores_anomalous: ``[M]``, likewise.

    Raises:
        InputError: An argument is empty, not one-dimensional, not real numbers, or holds NaN.
    """
    from sklearn.metrics import roc_curve

    normal = as_scores(scores_normal, "scores_normal")
    anomalous = as_scores(scores_anomalous, "scores_anomalous")
    ranks, distinct = ranked(normal, anomalous)
    is_anomalous = np.repeat([0, 1], [normal.size, anomalous.size])
    # Points on a straight line are kept: the best one at a given rate may be one of them.
    fpr, tpr, at = roc_curve(is_anomalous, ranks, drop_intermediate=False)
    return RocPoints(fpr, tpr, np.append(np.nan, distinct[at[1:].astype(np.int64)]))
