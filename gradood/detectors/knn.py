"""Distance of the log gradient norms to the k-th nearest normal input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gradood.detectors.features import Standardiser, log_norms
from gradood.detectors.neighbours import nearest
from gradood.detectors.norm_detector import LogNormDetector
from gradood.detectors.whitening import covariance, whitening_matrix
from gradood.errors import InputError
from gradood.gradients.engine import full_precision

if TYPE_CHECKING:
    from typing_extensions import Self

    from gradood.detectors.base import Source


class GradientKNN(LogNormDetector, name="gradient-knn"):
    """Euclidean distance to the k-th nearest normal input in whitened log norms.

    The normal log norms are standardised, whitened once for all, and kept: memory and time grow
    with the number of inputs given to ``fit``. Source of the idea: Sun et al.,
    "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022, there on activations.

    Args:
        model: Classifier in eval mode.
        neighbours: K, at least 1.
        **options: As in ``NormDetector``.

    Example:
        >>> detector = gradood.GradientKNN(model, neighbours=5).fit(normal)
        >>> scores = detector.score(images)
    """

    LEARNED = LogNormDetector.LEARNED | {"whitening", "bank"}

    def __init__(self, model: nn.Module, *, neighbours: int = 5, **options: Any) -> None:
        super().__init__(model, **options)
        if neighbours < 1:
            raise InputError(f"neighbours = {neighbours}; expected at least 1")
        self.neighbours = neighbours

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"neighbours": self.neighbours}

    def fit(self, normal: Source) -> Self:
        """Learn the whitening and keep the whitened normal log norms; forgets the threshold.

        Args:
            normal: Normal inputs, or their ``GradientNorms``; from 200 on it works, more is better.

        Raises:
            InputError: Fewer inputs than ``neighbours`` or than five, inputs that hold NaN or Inf,
                or all of them alike.
        """
        self._forget()
        features = log_norms(self._norms(normal, "fitting on normal inputs").values)
        if len(features) < self.neighbours:
            raise InputError(
                f"{len(features)} normal inputs have no {self.neighbours}-th nearest neighbour; "
                "give more inputs or a smaller neighbours="
            )
        standardise = Standardiser.fit(features)
        standardised = standardise(features)
        whitening = whitening_matrix(covariance(standardised.double())).to(standardised)
        with full_precision(standardised.device.type):
            learned = {"whitening": whitening, "bank": standardised @ whitening}
        self._learned = standardise._asdict() | learned
        return self

    def _score_features(self, features: Tensor) -> Tensor:
        learned = self.state
        return nearest(features @ learned["whitening"], learned["bank"], self.neighbours)
