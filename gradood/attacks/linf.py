"""FGSM and PGD in the l-infinity ball: gradient ascent on the classifier's loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradood.errors import InputError, ModelError


class Adversarial(NamedTuple):
    """Attacked images, and which of them the classifier gets wrong.

    Attributes:
        images: ``[N, ...]`` in [0, 1], within epsilon of the originals in every pixel.
        rounded: ``images`` rounded to the 256 levels that an image file can hold; up to 1/510
            further from the originals.
        success: ``[N]`` bool, the prediction on ``images`` is not the label.
        success_rounded: ``[N]`` bool, the same on ``rounded``.
    """

    images: Tensor
    rounded: Tensor
    success: Tensor
    success_rounded: Tensor


def fgsm(
    model: nn.Module, x: Tensor, labels: Tensor, *, epsilon: float = 8 / 255, batch_size: int = 256
) -> Adversarial:
    """Fast gradient sign method: ``clip(x + epsilon sign(∇ₓ CE(model(x), label)), 0, 1)``.

    Source: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015. Arguments,
    results and errors as in ``pgd``, of which it is one step of size epsilon from x itself.
    """
    return pgd(
        model,
        x,
        labels,
        epsilon=epsilon,
        steps=1,
        step_size=epsilon,
        random_start=False,
        batch_size=batch_size,
    )


def pgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 8 / 255,
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    seed: int = 0,
    batch_size: int = 256,
) -> Adversarial:
    """Projected gradient descent in the l-infinity ball of radius epsilon.

    ``x_{t+1} = Π(x_t + step_size sign(∇ CE(model(x_t), label)))``, with Π the projection onto the
    ball around x and onto [0, 1]; the last iterate is returned. Source: Madry et al., "Towards Deep
    Learning Models Resistant to Adversarial Attacks", 2018.

    Args:
        model: Classifier in eval mode, differentiable; its parameters and ``.grad`` are untouched.
        x: float images ``[N, ...]`` in [0, 1], on the model's device.
        labels: int64 ``[N]``, the classes to move away from.
        epsilon: Radius, in pixel units of [0, 1].
        steps: Gradient steps.
        step_size: Pixel units a step; None means ``epsilon / 4``.
        random_start: Start from a uniformly random point of the ball.
        seed: Of the random start, which does not depend on ``batch_size`` or on the device.
        batch_size: Images attacked at once.

    Returns:
        The attacked images and their success, all ``[N]`` images whether successful or not.

    Raises:
        InputError: ``x`` is not float in [0, 1], ``labels`` are not int64 ``[N]``, or ``epsilon``
            is negative.
        ModelError: A part of the model is in training mode.
    """
    _check(model, x, labels, epsilon)
    start = x
    if random_start:
        generator = torch.Generator().manual_seed(seed)
        noise = (2 * torch.rand(x.shape, generator=generator) - 1) * epsilon
        start = (x + noise.to(x)).clamp(0, 1)
    step = epsilon / 4 if step_size is None else step_size
    batches = zip(
        torch.split(x, batch_size),
        torch.split(start, batch_size),
        torch.split(labels, batch_size),
        strict=True,
    )
    with torch.inference_mode(False):
        images = torch.cat([_ascend(model, *batch, epsilon, steps, step) for batch in batches])
        rounded = (images * 255).round() / 255
        return Adversarial(
            images,
            rounded,
            _predict(model, images, batch_size) != labels,
            _predict(model, rounded, batch_size) != labels,
        )


def _ascend(
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    labels: Tensor,
    epsilon: float,
    steps: int,
    step_size: float,
) -> Tensor:
    lower, upper = (x - epsilon).clamp_min(0), (x + epsilon).clamp_max(1)
    images, labels = start.clone(), labels.clone()
    for _ in range(steps):
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            # In float64, because softmax − 1 of a confident prediction is 0 in float32, and the
            # sign of the gradient with it.
            loss = cross_entropy(model(images).double(), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, images)
        images = (images.detach() + step_size * gradient.sign()).clamp(lower, upper)
    return images


@torch.no_grad()
def _predict(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    return torch.cat([model(batch).argmax(1) for batch in torch.split(x, batch_size)])


def _check(model: nn.Module, x: Tensor, labels: Tensor, epsilon: float) -> None:
    if not x.is_floating_point() or not bool(((x >= 0) & (x <= 1)).all()):
        raise InputError(f"images must be float in [0, 1], these are {x.dtype} or leave the range")
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise InputError(
            f"labels must be int64 [{len(x)}], got {labels.dtype} {list(labels.shape)}"
        )
    if epsilon < 0:
        raise InputError(f"epsilon = {epsilon}; expected a radius >= 0")
    if any(module.training for module in model.modules()):
        raise ModelError("the model is in training mode; call model.eval() first")
