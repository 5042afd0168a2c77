"""The joint model of a classifier and a discriminator, and what is guaranteed of its confidence."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradood.arguments import checked
from gradood.distro.ibp import FLOAT32, upper_bound
from gradood.errors import InputError
from gradood.results import Result

Norm = Literal["linf", "l2"]


@checked
def joint_log_probabilities(logits: Tensor, d: Tensor) -> Tensor:
    r"""``log p = logaddexp(log s(d) + log softmax f, log s(-d) - log K)``, s the sigmoid.

    A normal input gets the classifier's probabilities, an anomalous one 1 / K each, and d says how
    much of both (Meinke et al. 2022, arXiv 2106.04260).

    Args:
        logits: F, ``[N, K]``.
        d: The discriminator's logit, ``[N]`` or ``[N, 1]``.

    Returns:
        Log-probabilities ``[N, K]``.
    """
    d = d.reshape(-1, 1)
    if logits.dim() != 2 or len(d) != len(logits):
        raise InputError(f"logits {list(logits.shape)} and d {list(d.shape)}; expected [N, K], [N]")
    uniform = torch.tensor(logits.shape[1], dtype=logits.dtype, device="cpu").log()
    return torch.logaddexp(F.logsigmoid(d) + logits.log_softmax(1), F.logsigmoid(-d) - uniform)


@checked
def joint_confidence(confidence: Tensor, d: Tensor, classes: int) -> Tensor:
    """``p conf + (1 - p) / K`` with p = sigmoid(d): the joint model's largest probability, ``[N]``.

    It grows with both arguments, as long as ``confidence >= 1 / K``: so upper bounds of both give
    one of it.
    """
    p = d.reshape(-1).double().sigmoid()
    return p * confidence.double() + (1 - p) / classes


@checked
class JointModel(nn.Module):
    """Classifier and discriminator as one classifier, whose confidence is low on outliers.

    The discriminator sees the input itself, never a denoised one: then the bound of d is about the
    model that runs. Used as the base model under smoothing, it would see noise; smooth the
    classifier instead, and combine with ``joint_confidence`` and ``guaranteed_confidence``.

    Args:
        classifier: ``[N, ...] -> logits [N, K]``.
        discriminator: ``[N, ...] -> d [N, 1]``, layers that ``ibp.propagate`` knows.

    Example:
        >>> from gradood.data import embedded_classifier, embedded_images
        >>> from gradood.distro import embedded_discriminator
        >>> joint = JointModel(embedded_classifier(), embedded_discriminator())
        >>> joint(embedded_images("mnist")[:3]).exp().sum(1).detach().round(decimals=3)
        tensor([1., 1., 1.])
    """

    def __init__(self, classifier: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.classifier, self.discriminator = classifier, discriminator

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities ``[N, K]``; their argmax is the classifier's, wherever s(d) > 0."""
        return joint_log_probabilities(self.classifier(x), self.discriminator(x))


@dataclass(frozen=True)
class GuaranteedConfidence(Result):
    """An upper bound of a joint model's confidence over a ball, and what it rests on.

    Attributes:
        upper: Float64 ``[N]``: no input of the ball in [0, 1] has a larger confidence, in float32.
        norm: Of the ball.
        radius: Of the ball, in units of the input.
        discriminator: Float64 ``[N]``, bound of sigmoid(d) by interval propagation, which holds
            for every input of the ball with certainty; None: d is bounded by nothing, sigmoid by 1.
        classifier: Float64 ``[N]``, bound of the classifier's confidence by smoothing, about the
            smoothed classifier and with the error probability of its certificates; None: it is
            bounded by 1.
    """

    upper: Tensor
    norm: Norm
    radius: float
    discriminator: Tensor | None
    classifier: Tensor | None


@checked
def guaranteed_confidence(
    x: Tensor,
    *,
    discriminator: nn.Module | None,
    classes: int,
    norm: Norm,
    radius: float,
    smoothed: Tensor | None = None,
) -> GuaranteedConfidence:
    r"""Bound the joint confidence of everything within ``radius`` of each input.

    ``p conf + (1 - p) / K`` is largest at the largest p and conf. p <= sigmoid(dbar), dbar by
    interval propagation over the l-infinity ball; an l2 ball lies in the l-infinity ball of the
    same radius, so it is served too, well only at small radii. conf <= the upper bound that
    ``certify_mean`` of the maximal softmax gives for the l2 ball; **at which radius that bound has
    to be asked for is** ``smoothing_radius``.

    Args:
        x: ``[N, ...]`` in [0, 1].
        discriminator: D, or None: there is none, p = 1.
        classes: K.
        norm: "linf" or "l2".
        radius: Of the ball.
        smoothed: ``[N]``, upper bounds of the smoothed classifier's confidence at
            ``smoothing_radius(x, norm, radius)``; None for a classifier that is not smoothed.

    Raises:
        InputError: An argument is none of that.
        ModelError: The discriminator has a layer without an interval bound.
    """
    if norm not in ("linf", "l2"):
        raise InputError(f'norm = {norm!r}; expected "linf" or "l2"')
    if smoothed is not None and smoothed.shape != (len(x),):
        raise InputError(f"smoothed is {list(smoothed.shape)}; expected [{len(x)}]")
    above = torch.ones(len(x), dtype=torch.float64, device="cpu")
    classifier = None if smoothed is None else smoothed.double().clamp(1 / classes, 1)
    confidence = above if classifier is None else classifier
    if discriminator is None:
        return GuaranteedConfidence(confidence, norm, radius, None, classifier)
    with torch.no_grad():
        exact = copy.deepcopy(discriminator).double()
        d = upper_bound(exact, x.double(), epsilon=radius, unit=FLOAT32)
    # The largest joint probability is at least 1 / K, so its logarithm and the terms of it that
    # matter are at most log K: eight operations on them in float32, each off by 2^-23 of that.
    room = 2.0**-20 * (1 + math.log(classes))
    upper = joint_confidence(confidence, d, classes) * (1 + room)
    return GuaranteedConfidence(upper, norm, radius, d.reshape(-1).sigmoid(), classifier)


@checked
def smoothing_radius(x: Tensor, *, norm: Norm, radius: float) -> float:
    """The l2 radius that holds a ball: itself, or ``sqrt(dimensions) radius`` for l-infinity."""
    return radius if norm == "l2" else radius * float(x[0].numel()) ** 0.5
