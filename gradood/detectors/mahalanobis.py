"""Distance of the log gradient norms from their mean on normal data, in standard deviations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from gradood.detectors.features import Standardiser
from gradood.detectors.gradient import GradientDetector, NormSource
from gradood.detectors.whitening import whitening_matrix

if TYPE_CHECKING:
    from typing_extensions import Self


class GradientMahalanobis(GradientDetector):
    """Mahalanobis distance ``(f - μ)ᵀ (Σ + s mean(λ) I)⁻¹ (f - μ)`` of log norms f.

    μ and Σ are the mean and covariance of standardised log squared gradient norms on normal data,
    λ the eigenvalues of Σ and s the shrinkage of ``whitening_matrix``. One Gaussian for all
    classes: the fastest of the detectors that need no anomalies. ``GradientGMM`` and
    ``GradientKNN`` find more. Arguments as in ``GradientDetector``.

    Example:
        >>> detector = gradood.GradientMahalanobis(model).fit(normal)
        >>> scores = detector.score(images)
    """

    LEARNED = GradientDetector.LEARNED | {"whitening"}

    def fit(self, normal: NormSource) -> Self:
        """Learn the mean and covariance of the normal log norms; forgets the threshold.

        Args:
            normal: Normal inputs, or their ``GradientNorms``; a few hundred suffice.

        Raises:
            InputError: Fewer than two inputs, inputs that hold NaN or Inf, or all of them alike.
        """
        self._forget()
        features = self._log_norms(normal, "fitting on normal inputs")
        standardise = Standardiser.fit(features)
        whitening = whitening_matrix(standardise(features))
        self._learned = standardise._asdict() | {"whitening": whitening}
        return self

    def _score_features(self, features: Tensor) -> Tensor:
        whitened: Tensor = features @ self._require_fitted()["whitening"]
        return whitened.square().sum(1)
