"""Attacks on classifier and detector at once: fool the one and look normal to the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradood.arguments import checked
from gradood.attacks.ball import Norm, make_ball
from gradood.attacks.iterative import check_classified, logits_to_follow, outcome
from gradood.attacks.scores import DifferentiableScore, differentiable
from gradood.attacks.search import Budget, search
from gradood.detectors import Detector
from gradood.errors import InputError
from gradood.gradients.decision import margin
from gradood.results import Result
from gradood.smoothing.fingerprint import fingerprint

#: What a point that does not fool is behind every point that does.
_BEHIND = 1e9


@dataclass(frozen=True)
class Evasion(Result):
    """Images that an adaptive attack made, whether they fool, and what the detector says of them.

    Attributes:
        images: ``[N, ...]`` in [0, 1], within epsilon of the originals.
        rounded: ``images`` rounded to the 256 levels that an image file can hold.
        success: ``[N]`` bool, the classifier is wrong on ``images``.
        success_rounded: ``[N]`` bool, the same on ``rounded``.
        clean: Float64 ``[N]``, scores of the originals.
        score: Float64 ``[N]``, scores of ``images``.
        score_rounded: Float64 ``[N]``, scores of ``rounded``.
    """

    images: Tensor
    rounded: Tensor
    success: Tensor
    success_rounded: Tensor
    clean: Tensor
    score: Tensor
    score_rounded: Tensor


@checked
def evade(
    model: nn.Module,
    score: Detector | DifferentiableScore,
    x: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor = 8 / 255,
    norm: Norm = "linf",
    confidence: float = 1.0,
    steps: int = 100,
    restarts: int = 5,
    seed: int = 0,
    batch_size: int = 128,
    state: str | Path | None = None,
    progress: bool | None = None,
) -> Evasion:
    """Fool the classifier by inputs that the detector takes for normal.

    APGD with restarts on ``m(x')`` where ``m(x') <= confidence``, and on ``-s(x')`` elsewhere, with
    m the margin ``max_{c != y} z_c - z_y`` and s the detector's score: every step serves the one
    aim that is not reached yet. Of all points that fool, the one with the lowest score is kept.
    Source: the selective gradients of Bryniarski et al., "Evading Adversarial Example Detection
    Defenses with Orthogonal Projected Gradient Descent", 2022, arXiv 2106.15023; APGD of Croce and
    Hein, 2020, arXiv 2003.01690.

    Args:
        model: Classifier in eval mode, differentiable.
        score: As in ``attack_score``: a fitted detector, or a differentiable score of each row.
        x: Float images ``[N, ...]`` in [0, 1].
        labels: Int64 ``[N]``, the classes to move away from.
        epsilon: Radius, one for all or ``[N]``.
        norm: "linf" or "l2".
        confidence: How far beyond the border a point must be, in logits, before the score counts;
            rounding to 256 levels undoes what is barely beyond it.
        steps: As in ``attack_score``, and so are all further arguments.
        restarts: As there.
        seed: As there.
        batch_size: As there.
        state: As there.
        progress: As there.

    Returns:
        ``Evasion``, all ``[N]`` inputs whether the attack succeeds or not.

    Raises:
        InputError: An argument is out of range.
        ModelError: A part of the model is in training mode, or it makes NaN or Inf of ``x``; or the
            score is not ``[N]``, or it or the logits have no derivative.
        CheckpointError: ``state`` belongs to another run.
        NotFittedError: The detector is not fitted.
    """
    if not confidence >= 0:
        raise InputError(f"confidence = {confidence}; expected at least 0")
    ball = make_ball(x, norm, epsilon, (0.0, 1.0))
    check_classified(model, x, labels, batch_size)
    evaluate = differentiable(score)

    def loss(points: Tensor, rows: Tensor) -> Tensor:
        beyond = -margin(logits_to_follow(model, points).double(), labels[rows])
        return torch.where(beyond > confidence, -evaluate(points).to(beyond), beyond - _BEHIND)

    identity: dict[str, Any] = {"model": fingerprint(model), "score": fingerprint(score)}
    identity |= {"labels": labels.tolist(), "confidence": confidence}
    budget = Budget(steps, restarts, seed, batch_size, None)
    found = search(loss, ball, budget, identity=identity, state=state, progress=progress)
    made = outcome(model, found.points, labels, batch_size)
    with torch.no_grad():
        scores = [_scores(evaluate, of, batch_size) for of in (x, made.images, made.rounded)]
    return Evasion(made.images, made.rounded, made.success, made.success_rounded, *scores)


def _scores(evaluate: DifferentiableScore, x: Tensor, batch_size: int) -> Tensor:
    parts = [evaluate(batch).double().cpu() for batch in x.split(batch_size) if len(batch)]
    return torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.float64, device="cpu")
