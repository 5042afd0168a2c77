"""Scores of an input as differentiable functions of it: what attacks on detectors climb."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus
from torch.overrides import TorchFunctionMode

from gradood.arguments import checked
from gradood.detectors import Detector, Energy, MaxSoftmax, NormDetector
from gradood.errors import InputError, ModelError

#: Inputs ``[N, ...]`` -> scores ``[N]``.
DifferentiableScore: TypeAlias = Callable[[Tensor], Tensor]


@checked
def max_confidence(model: nn.Module) -> DifferentiableScore:
    """``max_c softmax(model(x))_c``: what a detector by confidence takes for "normal".

    To hide an anomaly, maximise it: ``attack_score(max_confidence(model), x, epsilon=...,
    direction="up")``. Float64 ``[N]``.
    """
    left = MaxSoftmax(model)
    return lambda x: 1 - left.differentiable_score(x)


@checked
def energy(model: nn.Module) -> DifferentiableScore:
    """``-log Σ_c exp(z_c)``, higher = more anomalous, as ``gradood.Energy``; float64 ``[N]``."""
    return Energy(model).differentiable_score


@checked
def through_softplus(detector: Detector, *, beta: float = 30.0) -> DifferentiableScore:
    """A detector's score whose slope is that of the same network with softplus for ReLU.

    Where a ReLU switches, gradient norms jump, and the slope in between does not know of it.
    ``log(1 + exp(beta t)) / beta`` does; the value stays the true one. In an experiment on the
    embedded classifier it hid anomalies from ``GradientMahalanobis`` better than the exact slope.
    Source of the idea: Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of
    Security", 2018.

    Args:
        detector: Fitted.
        beta: The larger, the nearer to ReLU; per unit of the activations.

    Raises:
        InputError: ``beta`` is not positive.
    """
    if not beta > 0:
        raise InputError(f"beta = {beta}; expected a positive number")

    def score(x: Tensor) -> Tensor:
        with torch.no_grad():
            value = detector.differentiable_score(x.detach())
        if not torch.is_grad_enabled():
            return value
        with _Softplus(beta):
            smooth = detector.differentiable_score(x)
        return smooth + (value - smooth).detach()

    return score


def differentiable(score: Detector | DifferentiableScore) -> DifferentiableScore:
    """What attacks climb: ``through_softplus`` of a gradient detector, else the score itself.

    It raises ``ModelError`` where the values are not ``[N]``, or have no derivative.
    """
    if isinstance(score, Detector):
        score.require_fitted()
        gradient = isinstance(score, NormDetector)
        return _checked(through_softplus(score) if gradient else score.differentiable_score)
    return _checked(score)


def _checked(score: DifferentiableScore) -> DifferentiableScore:
    def values_of(x: Tensor) -> Tensor:
        values = score(x)
        if not isinstance(values, Tensor) or values.shape != x.shape[:1]:
            raise ModelError(f"the score of {len(x)} inputs must be a Tensor [{len(x)}]")
        if torch.is_grad_enabled() and not values.requires_grad:
            raise ModelError("the score has no derivative; write it in differentiable PyTorch")
        return values

    return values_of


class _Softplus(TorchFunctionMode):
    """Every ReLU in the block is a softplus."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _RELU:
            return softplus(args[0] if args else kwargs["input"], self._beta)
        return function(*args, **kwargs)


_RELU = (relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
