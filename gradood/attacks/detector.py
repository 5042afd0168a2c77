"""Attacks on a detector: move an input so that its score says the opposite of what it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from gradood.arguments import checked
from gradood.attacks.ball import Limits, Norm, make_ball
from gradood.attacks.iterative import rounded_to_levels
from gradood.attacks.scores import DifferentiableScore, differentiable
from gradood.attacks.search import Budget, Expectation, search
from gradood.detectors import Detector
from gradood.errors import InputError
from gradood.results import Result
from gradood.smoothing.fingerprint import fingerprint


@dataclass(frozen=True)
class AttackedScores(Result):
    """Attacked inputs and what the score says of them, float64; means under noise if it was given.

    Attributes:
        images: ``[N, ...]``, within epsilon of the originals.
        rounded: ``images`` rounded to the 256 levels that an image file can hold; for limits of
            (0, 1), else ``images`` again.
        clean: ``[N]``, scores of the originals.
        score: ``[N]``, scores of ``images``: never better for the detector than ``clean``.
        score_rounded: ``[N]``, scores of ``rounded``.
    """

    images: Tensor
    rounded: Tensor
    clean: Tensor
    score: Tensor
    score_rounded: Tensor


@checked
def attack_score(
    score: Detector | DifferentiableScore,
    x: Tensor,
    *,
    epsilon: float | Tensor,
    norm: Norm = "linf",
    direction: Literal["down", "up"] = "down",
    steps: int = 100,
    restarts: int = 5,
    expectation: Expectation | None = None,
    limits: Limits = (0.0, 1.0),
    seed: int = 0,
    batch_size: int = 128,
    state: str | Path | None = None,
    progress: bool | None = None,
) -> AttackedScores:
    """Minimise (or maximise) a score within ``‖x' - x‖ <= epsilon`` by APGD with restarts.

    Every input is attacked, whatever its class and whatever the classifier says of it: anomalous
    ones have no label. Restarts begin at x, at x with less contrast, and at random points of the
    ball; the best point of all is kept, x itself included. Source: APGD of Croce and Hein, 2020,
    arXiv 2003.01690; the starts, and the attack on confidence, as in Franco et al., 2023, arXiv
    2303.14961.

    Args:
        score: A fitted detector: gradient detectors are differentiated through their norms, by a
            second backward pass; see ``through_softplus``. Or ``[N, ...] -> [N]``, differentiable,
            whose rows do not influence one another, such as ``max_confidence(model)``.
        x: Float ``[N, ...]`` within the limits.
        epsilon: Radius in units of the input, one for all or ``[N]``.
        norm: "linf" or "l2".
        direction: "down" makes anomalies look normal, for scores that are higher for anomalies.
        steps: Gradients a restart.
        restarts: At least 1.
        expectation: Attack the mean over Gaussian noise: for smoothed scores.
        limits: (low, high) of images, or None, as certificates have none.
        seed: Of starts and noise, which depend on the seed, the row and the restart alone.
        batch_size: Inputs attacked at once; with an expectation, ``samples`` times as many copies.
            The result depends on it only by the model's rounding.
        state: File that keeps what restarts have found; call again with it to go on.
        progress: Show a progress bar on stderr; None shows it only on a terminal.

    Returns:
        ``AttackedScores``.

    Raises:
        InputError: An argument is out of range.
        ModelError: The score is not ``[N]``, or has no derivative.
        CheckpointError: ``state`` belongs to another run.
        NotFittedError: The detector is not fitted.

    Example:
        >>> from gradood.attacks import attack_score, max_confidence
        >>> from gradood.data import embedded_classifier, embedded_images
        >>> confidence, x = max_confidence(embedded_classifier()), embedded_images("mnist")[:4]
        >>> found = attack_score(confidence, x, epsilon=0.01, direction="up", steps=5, restarts=1)
        >>> bool((found.score >= found.clean).all())
        True
    """
    if direction not in ("down", "up"):
        raise InputError(f'direction = {direction!r}; expected "down" or "up"')
    evaluate = differentiable(score)
    sign = 1 if direction == "up" else -1

    def loss(points: Tensor, rows: Tensor) -> Tensor:
        return sign * evaluate(points)

    budget = Budget(steps, restarts, seed, batch_size, expectation)
    ball = make_ball(x, norm, epsilon, limits)
    identity: dict[str, Any] = {"model": fingerprint(score), "direction": direction}
    identity["limits"] = limits
    found = search(loss, ball, budget, identity=identity, state=state, progress=progress)
    rounded = rounded_to_levels(found.points) if limits == (0.0, 1.0) else found.points
    clean, rounded_values = (found.judge(points) for points in (x, rounded))
    return AttackedScores(
        found.points, rounded, sign * clean, sign * found.values, sign * rounded_values
    )
