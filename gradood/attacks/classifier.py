"""APGD on the classifier, and on the smoothed classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradood.arguments import checked
from gradood.attacks.ball import Limits, Norm, make_ball
from gradood.attacks.iterative import Adversarial, check_classified, logits_to_follow, outcome
from gradood.attacks.search import Budget, Expectation, search
from gradood.errors import InputError
from gradood.gradients.decision import margin
from gradood.smoothing.fingerprint import fingerprint

LOSSES = ("cross_entropy", "margin", "probability")


@checked
def apgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor = 8 / 255,
    norm: Norm = "linf",
    loss: Literal["cross_entropy", "margin", "probability"] = "cross_entropy",
    steps: int = 100,
    restarts: int = 5,
    expectation: Expectation | None = None,
    limits: Limits = (0.0, 1.0),
    seed: int = 0,
    batch_size: int = 128,
    state: str | Path | None = None,
    progress: bool | None = None,
) -> Adversarial:
    """Auto-PGD: projected gradient ascent on the loss that chooses its own step sizes.

    The loss is ``-log p_y``, the margin ``max_{c != y} z_c - z_y``, or ``-p_y``, whose mean over
    noise is what a smoothed classifier votes by, but for the hardness of its votes. Source: Croce
    and Hein, 2020, arXiv 2003.01690; under noise Salman et al., 2019, arXiv 1906.04584.

    Args:
        model: Classifier in eval mode, differentiable.
        x: Float images ``[N, ...]`` within the limits.
        labels: Int64 ``[N]``, the classes to move away from.
        epsilon: Radius, one for all or ``[N]``.
        norm: "linf" or "l2".
        loss: What is maximised.
        steps: As in ``attack_score``, and so are all further arguments.
        restarts: As there.
        expectation: As there. ``success`` is about the model without noise all the same.
        limits: As there.
        seed: As there.
        batch_size: As there.
        state: As there.
        progress: As there.

    Returns:
        The images with the largest loss found, and their success.

    Raises:
        InputError: An argument is out of range.
        ModelError: A part of the model is in training mode, or it makes NaN or Inf of ``x``.
        CheckpointError: ``state`` belongs to another run.
    """
    if loss not in LOSSES:
        raise InputError(f"loss = {loss!r}; expected one of {', '.join(LOSSES)}")
    ball = make_ball(x, norm, epsilon, limits)
    check_classified(model, x, labels, batch_size)

    def objective(points: Tensor, rows: Tensor) -> Tensor:
        return _loss(logits_to_follow(model, points).double(), labels[rows], loss)

    identity: dict[str, Any] = {"model": fingerprint(model), "loss": loss, "limits": limits}
    identity["labels"] = labels.tolist()
    budget = Budget(steps, restarts, seed, batch_size, expectation)
    found = search(objective, ball, budget, identity=identity, state=state, progress=progress)
    return outcome(model, found.points, labels, batch_size)


def _loss(logits: Tensor, labels: Tensor, loss: str) -> Tensor:
    """``[n]``, of float64 logits: softmax - 1 of a confident prediction is 0 in float32."""
    if loss == "cross_entropy":
        return cross_entropy(logits, labels, reduction="none")
    if loss == "margin":
        return -margin(logits, labels)
    return -logits.softmax(1).gather(1, labels[:, None])[:, 0]
