"""Scores of an input as differentiable functions of it: what attacks on detectors climb."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

from gradood.detectors import Detector, Energy, MaxSoftmax
from gradood.errors import ModelError

#: Inputs ``[N, ...]`` -> scores ``[N]``.
DifferentiableScore: TypeAlias = Callable[[Tensor], Tensor]


def max_confidence(model: nn.Module) -> DifferentiableScore:
    """``max_c softmax(model(x))_c``: what a detector by confidence takes for "normal".

    To hide an anomaly, maximise it: ``attack_score(max_confidence(model), x, epsilon=...,
    direction="up")``. Float64 ``[N]``.
    """
    left = MaxSoftmax(model)
    return lambda x: 1 - left.differentiable_score(x)


def energy(model: nn.Module) -> DifferentiableScore:
    """``-log Σ_c exp(z_c)``, higher = more anomalous, as ``gradood.Energy``; float64 ``[N]``."""
    return Energy(model).differentiable_score


def differentiable(score: Detector | DifferentiableScore) -> DifferentiableScore:
    """A detector's score with a derivative, or a callable as it is."""
    if isinstance(score, Detector):
        score._require_fitted()
        return score.differentiable_score
    if not callable(score):
        raise ModelError(f"cannot attack {type(score).__name__}; give a detector or a callable")
    return score
