"""The smallest l2 change that misleads: Carlini and Wagner, and DeepFool, both from foolbox.

foolbox 3.3.4 is of March 2024 and runs with current PyTorch; torchattacks 3.5.1, of October 2023,
asks for a version of requests from 2020, so it is not used.
"""

from __future__ import annotations

import copy
import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from gradood.arguments import checked
from gradood.attacks.ball import make_ball
from gradood.attacks.iterative import Adversarial, check_classified, logits_to_follow, outcome
from gradood.errors import InputError


@checked
def carlini_wagner(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    steps: int = 200,
    search_steps: int = 6,
    step_size: float = 0.01,
    confidence: float = 0.0,
    batch_size: int = 128,
) -> Adversarial:
    """Carlini and Wagner's l2 attack: ``min ‖δ‖² + c max(z_y - max_{c != y} z_c, -confidence)``.

    Over δ by Adam in the space of ``tanh``, for ``search_steps`` values of c by bisection. Source:
    Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017.

    Args:
        model: Classifier in eval mode, differentiable.
        x: Float images ``[N, ...]`` in [0, 1].
        labels: Int64 ``[N]``, the classes to move away from.
        steps: Adam steps for each value of c.
        search_steps: Values of c.
        step_size: Of Adam.
        confidence: How far beyond the border to go, in logits.
        batch_size: Images attacked at once.

    Returns:
        Attacked images, and x itself where no change misleads.

    Raises:
        InputError: Foolbox is not installed, or an argument is wrong.
        ModelError: A part of the model is in training mode.
    """
    attack = _foolbox("attacks").L2CarliniWagnerAttack(
        binary_search_steps=search_steps,
        steps=steps,
        stepsize=step_size,
        confidence=confidence,
        initial_const=0.1,
    )
    return _run(attack, model, x, labels, batch_size)


@checked
def deepfool(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    steps: int = 50,
    overshoot: float = 0.02,
    batch_size: int = 128,
) -> Adversarial:
    """DeepFool in l2: step after step to the nearest border of the linearised classifier.

    Source: Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep
    neural networks", 2016. Arguments, results and errors as in ``carlini_wagner``; ``overshoot`` is
    the share of each step added to it, to arrive beyond the border. Rounding to 256 levels undoes
    many of its successes: see ``success_rounded``.
    """
    attack = _foolbox("attacks").L2DeepFoolAttack(steps=steps, overshoot=overshoot)
    return _run(attack, model, x, labels, batch_size)


class _Classes(nn.Module):
    """A model as a function from images to the logits ``[N, C]`` of two or more classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C]``."""
        return logits_to_follow(self.model, x)


def _run(attack: Any, model: nn.Module, x: Tensor, labels: Tensor, batch_size: int) -> Adversarial:
    make_ball(x, "l2", 0.0, (0.0, 1.0))
    check_classified(model, x, labels, batch_size)
    with torch.inference_mode(False), torch.enable_grad():
        # A frozen copy: foolbox would add to the parameters' gradients.
        frozen = _Classes(copy.deepcopy(model)).requires_grad_(False).eval()
        wrapped = _foolbox().PyTorchModel(frozen, bounds=(0, 1), device=x.device)
        parts = []
        for images, classes in zip(x.split(batch_size), labels.split(batch_size), strict=True):
            if len(images):
                moved, _, success = attack(wrapped, images.clone(), classes.clone(), epsilons=None)
                keep = success.view(-1, *[1] * (x.dim() - 1))
                parts.append(torch.where(keep, moved, images).detach())
    return outcome(model, torch.cat(parts) if parts else x.clone(), labels, batch_size)


def _foolbox(module: str = "") -> Any:
    try:
        with warnings.catch_warnings():
            # It imports from a namespace that SciPy is about to remove.
            warnings.simplefilter("ignore", DeprecationWarning)
            return import_module(f"foolbox.{module}" if module else "foolbox")
    except ImportError as error:
        raise InputError(
            f"this attack needs the package foolbox, which cannot be imported ({error}). Install "
            "it with: pip install gradood[attacks]"
        ) from error
