"""Detection metrics of attacked inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradood.arguments import checked
from gradood.arrays import Floats
from gradood.errors import InputError
from gradood.evaluation.curves import Scores, as_scores
from gradood.evaluation.guaranteed import GuaranteedMetrics, as_bounds, radii, stacked, worst
from gradood.results import Result


@dataclass(frozen=True)
class AdversarialMetrics(Result):
    """What ``evaluate_adversarial`` returns: AAUC, AAUPR and AFPR are ``clean_normals``' metrics.

    Attributes:
        radius: Float64 ``[R]``, of the attacks.
        clean_normals: Anomalous inputs were attacked, normal ones not.
        moved_normals: Both were; None if normal inputs were not attacked.
        count_normal: N.
        count_anomalous: M.
    """

    radius: Floats
    clean_normals: GuaranteedMetrics
    moved_normals: GuaranteedMetrics | None
    count_normal: int
    count_anomalous: int


@checked
def evaluate_adversarial(
    scores_normal: Scores,
    scores_anomalous: Scores,
    radius: npt.ArrayLike,
    attacked_anomalous: Mapping[str, Scores],
    *,
    attacked_normal: Mapping[str, Scores] | None = None,
) -> AdversarialMetrics:
    """Metrics when every anomalous input is replaced by the attack that hides it best.

    ``a_m(r) = min over attacks and radii r' <= r of the attacked score, and of the clean one``: not
    to attack is an attack too, and a point within r' is within r. Normal inputs likewise with the
    largest score, where they were attacked.

    Ties count as losses, in the formulas of ``evaluate_guaranteed``. So at every radius, by
    construction: no metric is better than ``evaluate`` makes it of the clean scores, nor at a
    larger radius; and none is worse than ``evaluate_guaranteed`` makes it of bounds which hold for
    the scores given here. Without ties the formulas are those of ``evaluate``. Unlike a guarantee,
    an attack says only that a detector is no better than this.

    Args:
        scores_normal: ``[N]``, higher = more anomalous.
        scores_anomalous: ``[M]``, without attack.
        radius: ``[R]``, distinct, at least 0; or one number.
        attacked_anomalous: For every attack by name ``[M, R]``, or ``[M]`` for a single radius:
            scores of the inputs that it moved, of all of them, whether it succeeded or not.
        attacked_normal: The same for normal inputs, ``[N, R]``; None if they stay.

    Returns:
        ``AdversarialMetrics``; shares, not percentages.

    Raises:
        InputError: Shapes do not fit, a score is NaN, there is no attack or nothing to evaluate.

    Example:
        >>> from gradood.evaluation import evaluate_adversarial
        >>> attacked = {"pgd": [0.2, 0.9], "apgd": [0.4, 0.2]}
        >>> evaluate_adversarial([0.1, 0.3], [0.5, 0.9], 0.25, attacked).clean_normals.auroc
        array([0.5])
    """
    grid = radii(radius)
    still = as_scores(scores_normal, "scores_normal")
    clean = as_scores(scores_anomalous, "scores_anomalous")
    anomalous = -_highest(-clean, attacked_anomalous, -1, "attacked_anomalous", grid)
    metrics = stacked(worst(still, column, 0) for column in anomalous.T)
    moved = None
    if attacked_normal is not None:
        normal = _highest(still, attacked_normal, 1, "attacked_normal", grid)
        pairs = zip(normal.T, anomalous.T, strict=True)
        moved = stacked(worst(above, below, 0) for above, below in pairs)
    return AdversarialMetrics(grid, metrics, moved, len(still), len(clean))


def _highest(
    clean: Floats, attacked: Mapping[str, Scores], sign: int, name: str, grid: Floats
) -> Floats:
    """``[N, R]``: the highest of ``sign`` times the scores, over attacks and smaller radii."""
    if not attacked:
        raise InputError(f"{name} must map the name of at least one attack to its scores.")
    highest = np.repeat(clean[:, None], grid.size, 1)
    for attack, scores in attacked.items():
        where = f"{name}[{attack!r}]"
        values = as_bounds(scores, where, np.nan, grid)
        if values.shape != highest.shape:
            shapes = list(highest.shape), list(values.shape)
            raise InputError(f"{where} must have shape {shapes[0]}, got {shapes[1]}.")
        if np.isnan(values).any():
            raise InputError(f"{where} holds NaN; attacked inputs need a score each.")
        highest = np.maximum(highest, sign * values)
    order = np.argsort(grid)
    highest[:, order] = np.maximum.accumulate(highest[:, order], axis=1)
    return highest
