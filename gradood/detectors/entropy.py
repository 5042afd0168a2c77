"""Generalised entropy of the softmax probabilities."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gradood.detectors.baselines import LogitDetector
from gradood.errors import InputError

_LEAST = 1e-300


class GeneralizedEntropy(LogitDetector, name="generalized-entropy"):
    """``Σ_j p_j^γ (1 - p_j)^γ`` over the ``top`` largest softmax probabilities p.

    A small γ weighs small probabilities heavily: the score tells a confident prediction from one
    whose rest is spread over many classes. Source: Liu, Lochman, Zach, "GEN: Pushing the Limits of
    Softmax-Based Out-of-Distribution Detection", 2023, equation 7 with the opposite sign.

    Args:
        model: Classifier in eval mode.
        gamma: γ in (0, 1).
        top: How many of the largest probabilities count, at least 1; all where there are fewer.
        **options: As in ``Detector``.

    Example:
        >>> detector = gradood.detectors.GeneralizedEntropy(model)
        >>> detector.score(images).shape
        torch.Size([5])
    """

    def __init__(
        self, model: nn.Module, *, gamma: float = 0.1, top: int = 100, **options: Any
    ) -> None:
        super().__init__(model, **options)
        if not 0 < gamma < 1:
            raise InputError(f"gamma = {gamma}; expected a number in (0, 1)")
        if top < 1:
            raise InputError(f"top = {top}; expected at least 1")
        self.gamma, self.top = gamma, top

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"gamma": self.gamma, "top": self.top}

    def _score_outputs(self, logits: Tensor, features: Tensor | None) -> Tensor:
        p = logits.softmax(1).topk(min(self.top, logits.shape[1]), 1).values
        # A power of zero has an infinite slope.
        return (p * (1 - p)).clamp(min=_LEAST).pow(self.gamma).sum(1)
