"""Gradients of the last layer in closed form: detectors that cost one forward pass."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from gradood.detectors.baselines import LogitDetector
from gradood.detectors.batches import AnyBatch
from gradood.errors import ModelError
from gradood.gradients.penultimate import LastLinear


class HeadDetector(LogitDetector):
    """A score of the logits and the penultimate features; there is nothing to fit."""

    @abstractmethod
    def _score_head(self, logits: Tensor, features: Tensor) -> Tensor:
        """Scores ``[n]`` of float64 logits ``[n, C]`` and features ``[n, F]``."""

    def _forward(self, batch: AnyBatch) -> tuple[Tensor, Tensor | None]:
        with LastLinear() as seen:
            logits, _ = super()._forward(batch)
        return logits, seen.features

    def _score_outputs(self, logits: Tensor, features: Tensor | None) -> Tensor:
        if features is None:
            raise ModelError(
                f"{type(self).__name__} reads the input of the last layer, and the model has no "
                "torch.nn.functional.linear that maps one vector a sample"
            )
        return self._score_head(logits, features.double())


class GradNorm(HeadDetector):
    """``-‖∂ CE(u, softmax(z)) / ∂W‖₁ = -‖softmax(z) - u‖₁ ‖h‖₁``, u uniform, W the last weight.

    The gradient is the outer product of ``softmax(z) - u`` and the penultimate features h. Source:
    Huang, Geng, Li, "On the Importance of Gradients for Detecting Distributional Shifts in the
    Wild", 2021. Arguments as in ``Detector``.
    """

    def _score_head(self, logits: Tensor, features: Tensor) -> Tensor:
        delta = logits.softmax(1) - 1 / logits.shape[1]
        return -delta.abs().sum(1) * features.abs().sum(1)


class ExGrad(HeadDetector):
    """``Σ_c p_c ‖∂ log p_c / ∂W‖₁ = 2 (1 - Σ_c p_c²) ‖h‖₁``, W the last weight.

    The gradient that is expected if the model is right: ``∂ log p_c / ∂z = e_c - p`` has the L1
    norm ``2 (1 - p_c)``. Source: Igoe et al., "How Useful are Gradients for OOD Detection Really?",
    2022. Arguments as in ``Detector``.
    """

    def _score_head(self, logits: Tensor, features: Tensor) -> Tensor:
        p = logits.softmax(1)
        return 2 * (1 - p.square().sum(1)) * features.abs().sum(1)
