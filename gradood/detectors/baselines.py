"""Yardsticks that read only the logits: maximum softmax probability and energy."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradood.detectors.base import Detector
from gradood.errors import InputError
from gradood.gradients import GradientNorms
from gradood.gradients.validation import logits_of, require_eval

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
        """Scores ``[n]`` of float64 logits ``[n, C]``."""

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
    def _score_batch(self, batch: Tensor) -> Tensor:
        require_eval(self.model)
        usable = batch.flatten(1).isfinite().all(1)
        if self.nan_policy == "raise" and not usable.all():
            rows = (~usable).nonzero().flatten().tolist()
            raise InputError(f"inputs {rows[:10]} of a batch hold NaN or Inf; remove them")
        return self._score(usable, *self._forward(batch))

    def _score_norms(self, norms: GradientNorms) -> Tensor:
        norms = norms.to(self._device)
        # Inputs flagged for NaN or Inf have NaN logits.
        return self._score(norms.logits.isfinite().all(1), norms.logits, norms.features)

    def _score(self, usable: Tensor, logits: Tensor, features: Tensor | None) -> Tensor:
        scores = self._score_outputs(logits.double(), features).float()
        return torch.where(usable, scores, torch.inf)

    def _forward(self, batch: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits ``[n, C]``, and penultimate features ``[n, F]`` if they are needed."""
        return logits_of(self.model(batch), len(batch)), None


class MaxSoftmax(LogitDetector):
    """``1 - max_c softmax(z)_c``, the probability left to the other classes.

    Source: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples in Neural Networks", 2017.
    """

    def _score_outputs(self, logits: Tensor, features: Tensor | None) -> Tensor:
        return 1 - logits.softmax(1).amax(1)


class Energy(LogitDetector):
    """``-log Σ_c exp(z_c)``: the free energy at temperature one, high where all logits are low.

    Source: Liu et al., "Energy-based Out-of-distribution Detection", 2020.
    """

    def _score_outputs(self, logits: Tensor, features: Tensor | None) -> Tensor:
        return -torch.logsumexp(logits, 1)
