"""Yardsticks that read only the logits: maximum softmax probability and energy."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradood.detectors.base import Detector
from gradood.detectors.batches import AnyBatch
from gradood.gradients import GradientNorms
from gradood.gradients.decision import as_classes, not_finite_rows
from gradood.gradients.validation import class_logits, not_finite, require_eval

if TYPE_CHECKING:
    from typing_extensions import Self

    from gradood.detectors.base import Source


class LogitDetector(Detector):
    """A score computed from the logits; there is nothing to fit. Arguments as in ``Detector``."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, **options)
        self._learned = {}

    @abstractmethod
    def _score_outputs(self, logits: Tensor, features: Tensor | None) -> Tensor:
        """Scores ``[n]`` of float64 logits ``[n, C]``, C ≥ 2; of one logit those of its sigmoid."""

    def fit(self, normal: Source | None = None) -> Self:
        """Do nothing but forget the threshold: the same call as for other detectors."""
        self._threshold = None
        return self

    def differentiable_score(self, x: Tensor) -> Tensor:
        """``score`` of one batch, float64, with a graph; see ``Detector.differentiable_score``."""
        require_eval(self.model)
        logits, features = self._forward(x)
        return self._score_outputs(logits.double(), features)

    @torch.no_grad()
    def score_batch(self, batch: AnyBatch) -> Tensor:
        require_eval(self.model)
        bad = not_finite(batch, self.nan_policy)
        scores = self._score(*self._forward(batch))
        return scores if bad is None else scores.masked_fill(bad, torch.inf)

    def score_norms(self, norms: GradientNorms) -> Tensor:
        norms = norms.to(self._device)
        return self._score(as_classes(norms.logits), norms.features)

    def _score(self, logits: Tensor, features: Tensor | None) -> Tensor:
        # Not normal, whatever made them so: an input that holds NaN, or one that overflows.
        unusable = not_finite_rows(logits, features)
        scores = self._score_outputs(logits.double(), features).float()
        return torch.where(unusable, torch.inf, scores)

    def _forward(self, batch: AnyBatch) -> tuple[Tensor, Tensor | None]:
        """Logits ``[n, C]``, and penultimate features ``[n, F]`` if they are needed."""
        return class_logits(self.model, batch), None


class MaxSoftmax(LogitDetector, name="max-softmax"):
    """``1 - max_c softmax(z)_c``, the probability left to the other classes.

    Source: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples in Neural Networks", 2017.
    """

    def _score_outputs(self, logits: Tensor, features: Tensor | None) -> Tensor:
        return 1 - logits.softmax(1).amax(1)


class Energy(LogitDetector, name="energy"):
    """``-log Σ_c exp(z_c)``: the free energy at temperature one, high where all logits are low.

    Source: Liu et al., "Energy-based Out-of-distribution Detection", 2020.
    """

    def _score_outputs(self, logits: Tensor, features: Tensor | None) -> Tensor:
        return -torch.logsumexp(logits, 1)
