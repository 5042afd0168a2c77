"""Distance of the log gradient norms from the nearest class of normal data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from gradood.detectors.class_gaussians import GAUSSIANS, distances, fit_gaussians
from gradood.detectors.features import Standardiser, log_norms
from gradood.detectors.norm_detector import LogNormDetector
from gradood.gradients.decision import predicted

if TYPE_CHECKING:
    from typing_extensions import Self

    from gradood.detectors.base import Source


class GradientMahalanobis(LogNormDetector, name="gradient-mahalanobis"):
    """``min_c (f - μ_c)ᵀ Σ_c⁻¹ (f - μ_c) + log det Σ_c``: nearest of one Gaussian per class.

    f are standardised log squared gradient norms ``[d]``; μ_c and S_c their mean and covariance
    over the n_c normal inputs that the model predicts to be of class c. Few inputs do not determine
    a covariance, so each is shrunk towards the pooled S as if d more inputs had been seen,
    ``Σ_c = (n_c S_c + d S) / (n_c + d)``, and then a little towards the identity (``whitening``).
    Only fitting reads the predicted classes, so the score is continuous in the norms. Source of the
    shrinkage: Friedman, "Regularized Discriminant Analysis", 1989. Arguments as in
    ``NormDetector``.

    Example:
        >>> detector = gradood.GradientMahalanobis(model).fit(normal)
        >>> scores = detector.score(images)
    """

    LEARNED = LogNormDetector.LEARNED | set(GAUSSIANS)

    def fit(self, normal: Source) -> Self:
        """Learn the Gaussians; forgets the threshold.

        Args:
            normal: Normal inputs, or their ``GradientNorms``; from 20 a class on it works, 100 are
                better.

        Raises:
            InputError: No class is predicted for two inputs, or inputs hold NaN or Inf or are all
                alike.
        """
        self._forget()
        norms = self._norms(normal, "fitting on normal inputs")
        features = log_norms(norms.values)
        standardise = Standardiser.fit(features)
        gaussians = fit_gaussians(standardise(features).double(), predicted(norms.logits))
        learned = {name: gaussians[name].to(features) for name in GAUSSIANS}
        self._learned = standardise._asdict() | learned
        return self

    def _score_features(self, features: Tensor) -> Tensor:
        return distances(features, self.state).amin(1)
