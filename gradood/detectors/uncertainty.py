"""The sum of all gradient norms, as a yardstick: it needs no fit, and its sign is a guess."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradood.detectors.norm_detector import NormDetector
from gradood.gradients import GradientNorms
from gradood.gradients.validation import Selection

if TYPE_CHECKING:
    from typing_extensions import Self

    from gradood.detectors.base import Source


class GradUncertainty(NormDetector):
    """``-Σ_l ‖∂J/∂θ_l‖²``, J the binary cross-entropy of the softmax to all classes at once.

    Source: Lee and AlRegib, "Gradients as a Measure of Uncertainty in Neural Networks", 2020, which
    trains a network on the norms; their plain sum is what pytorch-ood computes. Familiar inputs
    often have larger gradients under this loss, but not always: some sets score far below chance.

    Args:
        model: Classifier in eval mode.
        parameters: As in ``gradood.gradient_norms``.
        **options: As in ``Detector``.
    """

    LEARNED = frozenset()

    def __init__(self, model: nn.Module, *, parameters: Selection = None, **options: Any) -> None:
        super().__init__(
            model, label="all_hot", loss="bce_softmax", parameters=parameters, **options
        )
        self._learned = {}

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        return {name: value for name, value in settings.items() if name not in ("label", "loss")}

    def fit(self, normal: Source | None = None) -> Self:
        """Do nothing but forget the threshold: the same call as for other detectors."""
        self._threshold = None
        return self

    def score_norms(self, norms: GradientNorms) -> Tensor:
        values = self._checked(norms).values.flatten(1).to(self._device)
        usable = values.isfinite().all(1)
        return torch.where(usable, -values.sum(1, dtype=torch.float64), torch.inf).float()
