"""Steps of a fixed size along the gradient of the classifier's loss: FGSM, BIM, PGD and kin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradood.arguments import checked
from gradood.attacks.ball import Ball, Norm, make_ball
from gradood.attacks.search import random_points
from gradood.errors import InputError, ModelError
from gradood.gradients.decision import not_finite_rows
from gradood.gradients.validation import class_logits, require_eval, unusable_rows
from gradood.results import Result


@dataclass(frozen=True)
class Adversarial(Result):
    """Attacked images, and which of them the classifier gets wrong.

    Attributes:
        images: ``[N, ...]`` in [0, 1], within epsilon of the originals in every pixel.
        rounded: ``images`` rounded to the 256 levels that an image file can hold; up to 1/510
            further from the originals.
        success: ``[N]`` bool, the prediction on ``images`` is not the label; logits with NaN or Inf
            predict nothing.
        success_rounded: ``[N]`` bool, the same on ``rounded``.
    """

    images: Tensor
    rounded: Tensor
    success: Tensor
    success_rounded: Tensor


@checked
def fgsm(
    model: nn.Module, x: Tensor, labels: Tensor, *, epsilon: float = 8 / 255, batch_size: int = 256
) -> Adversarial:
    """Fast gradient sign method: ``clip(x + epsilon sign(∇ₓ CE(model(x), label)), 0, 1)``.

    Source: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015. Arguments,
    results and errors as in ``pgd``, of which it is one step of size epsilon from x itself.
    """
    options: dict[str, Any] = {"steps": 1, "step_size": epsilon, "random_start": False}
    return pgd(model, x, labels=labels, epsilon=epsilon, batch_size=batch_size, **options)


@checked
def bim(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 8 / 255,
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    batch_size: int = 256,
) -> Adversarial:
    """Basic iterative method: ``pgd`` from x itself. Source: Kurakin et al., 2017."""
    options: dict[str, Any] = {"epsilon": epsilon, "norm": norm, "steps": steps}
    options |= {"step_size": step_size, "batch_size": batch_size, "random_start": False}
    return pgd(model, x, labels=labels, **options)


@checked
def least_likely(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 8 / 255,
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    batch_size: int = 256,
) -> Adversarial:
    """Iterative least-likely class: descend ``CE(model(x), argmin_c model(x_0)_c)`` from x itself.

    Source: Kurakin, Goodfellow, Bengio, "Adversarial examples in the physical world", 2017.
    Arguments, results and errors as in ``pgd``; success is any class but the label.
    """
    ball = make_ball(x, norm, epsilon, (0.0, 1.0))
    check_classified(model, x, labels, batch_size)
    goals = _logits(model, x, batch_size).argmin(1) if len(x) else labels
    images = _climb(model, x, goals, ball, steps, -_step(step_size, epsilon), batch_size)
    return outcome(model, images, labels, batch_size)


@checked
def negation(model: nn.Module, x: Tensor, labels: Tensor, *, batch_size: int = 256) -> Adversarial:
    """The negative ``1 - x``: the same shapes to a human eye, and far away in every norm.

    The semantic attack of Hosseini et al., "On the Limitation of Convolutional Neural Networks in
    Recognizing Negative Images", 2017. Arguments, results and errors as in ``pgd``.
    """
    make_ball(x, "linf", 0.0, (0.0, 1.0))
    check_classified(model, x, labels, batch_size)
    return outcome(model, 1 - x, labels, batch_size)


@checked
def pgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 8 / 255,
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    seed: int = 0,
    batch_size: int = 256,
) -> Adversarial:
    """Projected gradient descent in the l∞ or l2 ball of radius epsilon.

    ``x_{t+1} = Π(x_t + step_size d(∇ CE(model(x_t), label)))``, with d the sign for l∞ and
    ``g / ‖g‖`` for l2, and Π the projection onto the ball around x and onto [0, 1]; the last
    iterate is returned. Source: Madry et al., "Towards Deep Learning Models Resistant to
    Adversarial Attacks", 2018.

    Args:
        model: Classifier in eval mode, differentiable; its parameters and ``.grad`` are untouched.
        x: Float images ``[N, ...]`` in [0, 1], on the model's device.
        labels: Int64 ``[N]``, the classes to move away from; of a model with one logit 1 where it
            is positive, else 0.
        epsilon: Radius, in pixel units of [0, 1].
        norm: "linf" or "l2".
        steps: Gradient steps.
        step_size: Pixel units a step; None means ``epsilon / 4``.
        random_start: Start from a uniformly random point of the ball.
        seed: Of the random start, which does not depend on ``batch_size`` or on the device.
        batch_size: Images attacked at once.

    Returns:
        The attacked images and their success, all ``[N]`` images whether successful or not.

    Raises:
        InputError: ``x`` is not float in [0, 1], ``labels`` are not int64 ``[N]`` or no classes of
            the model, or ``epsilon`` is negative.
        ModelError: A part of the model is in training mode, it makes NaN or Inf of ``x``, or its
            logits have no gradient.
    """
    ball = make_ball(x, norm, epsilon, (0.0, 1.0))
    check_classified(model, x, labels, batch_size)
    start = (
        random_points(ball, torch.arange(len(x), dtype=torch.int64, device="cpu"), seed)
        if random_start
        else x
    )
    images = _climb(model, start, labels, ball, steps, _step(step_size, epsilon), batch_size)
    return outcome(model, images, labels, batch_size)


def _step(given: float | None, epsilon: float) -> float:
    return epsilon / 4 if given is None else given


def rounded_to_levels(images: Tensor) -> Tensor:
    """Pixels in [0, 1] rounded to the 256 levels that an image file can hold."""
    return (images * 255).round() / 255


def outcome(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> Adversarial:
    """Which images the classifier gets wrong, as they are and rounded."""
    rounded = rounded_to_levels(images)
    wrong = (_wrong(model, points, labels, batch_size) for points in (images, rounded))
    return Adversarial(images, rounded, *wrong)


def _wrong(model: nn.Module, points: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Where the classifier does not give the label; logits that are not finite give none."""
    if not len(points):
        return labels.bool()
    logits = _logits(model, points, batch_size)
    return (logits.argmax(1) != labels) | not_finite_rows(logits)


def check_classified(model: nn.Module, x: Tensor, labels: Tensor, batch_size: int) -> None:
    """Refuse labels that do not fit ``x``, and a model that does not classify it.

    Raises:
        InputError: The labels are not int64 ``[N]``, or name no class of the model.
        ModelError: A part of the model is in training mode, or it makes NaN or Inf of ``x``.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size = {batch_size!r}; expected a whole number from 1 on")
    if not isinstance(labels, Tensor):
        raise InputError(f"labels must be a Tensor, int64 [{len(x)}], not {type(labels).__name__}")
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise InputError(
            f"labels must be int64 [{len(x)}], got {labels.dtype} {list(labels.shape)}"
        )
    require_eval(model)
    if not len(x):
        return
    logits = _logits(model, x, batch_size)
    unusable_rows([logits], None, "raise")
    classes = logits.shape[1]
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise InputError(
            f"{len(outside)} of {len(labels)} labels are none of the model's classes 0 to "
            f"{classes - 1}, the first {int(outside[0])}; leave out inputs without a label"
        )


def _climb(
    model: nn.Module,
    start: Tensor,
    labels: Tensor,
    ball: Ball,
    steps: int,
    step: float,
    batch_size: int,
) -> Tensor:
    """Steps of a fixed size up the cross-entropy; down it for a negative size."""
    if not isinstance(steps, int) or steps < 0:
        raise InputError(f"steps = {steps!r}; expected a whole number from 0 on")
    parts = []
    with torch.inference_mode(False):
        for rows in (
            torch.arange(len(start), dtype=torch.int64, device="cpu").split(batch_size)
            if len(start)
            else ()
        ):
            images, inner, classes = start[rows].clone(), ball.rows(rows), labels[rows].clone()
            for _ in range(steps):
                images = images.detach().requires_grad_()
                with torch.enable_grad():
                    # In float64, because softmax − 1 of a confident prediction is 0 in float32,
                    # and the sign of the gradient with it.
                    logits = logits_to_follow(model, images).double()
                    loss = cross_entropy(logits, classes, reduction="sum")
                    (gradient,) = torch.autograd.grad(loss, images)
                images = inner.ascend(images.detach(), gradient, step)
            parts.append(images)
        return torch.cat(parts) if parts else start.clone()


def logits_to_follow(model: nn.Module, x: Tensor) -> Tensor:
    """The logits ``[N, C]`` of points whose gradient an attack is to follow.

    Raises:
        ModelError: They have none: the attack would stay where it began, and find nothing.
    """
    logits = class_logits(model, x)
    if torch.is_grad_enabled() and x.requires_grad and not logits.requires_grad:
        raise ModelError(
            "the model's logits have no gradient with respect to its input: its forward pass runs "
            "inside no_grad or detaches them, or it is quantised. Attacks that follow gradients "
            "say nothing of such a model"
        )
    return logits


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    return torch.cat([class_logits(model, batch) for batch in torch.split(x, batch_size)])
