"""Distance of the log gradient norms from the nearest class of normal data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradood.detectors.features import Standardiser, log_norms
from gradood.detectors.gradient import GradientDetector
from gradood.detectors.whitening import covariance, whitening_matrix
from gradood.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

    from gradood.detectors.base import Source


class GradientMahalanobis(GradientDetector):
    """``min_c (f - μ_c)ᵀ Σ_c⁻¹ (f - μ_c) + log det Σ_c``: nearest of one Gaussian per class.

    f are standardised log squared gradient norms ``[d]``; μ_c and S_c their mean and covariance
    over the n_c normal inputs that the model predicts to be of class c. Few inputs do not determine
    a covariance, so each is shrunk towards the pooled S as if d more inputs had been seen,
    ``Σ_c = (n_c S_c + d S) / (n_c + d)``, and then a little towards the identity (``whitening``).
    Only fitting reads the predicted classes, so the score is continuous in the norms. Source of the
    shrinkage: Friedman, "Regularized Discriminant Analysis", 1989. Arguments as in
    ``GradientDetector``.

    Example:
        >>> detector = gradood.GradientMahalanobis(model).fit(normal)
        >>> scores = detector.score(images)
    """

    LEARNED = GradientDetector.LEARNED | {"means", "whitenings", "log_determinants"}

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
        gaussians = _fit_gaussians(standardise(features).double(), norms.logits.argmax(1))
        learned = {name: tensor.to(features) for name, tensor in gaussians.items()}
        self._learned = standardise._asdict() | learned
        return self

    def _score_features(self, features: Tensor) -> Tensor:
        learned = self._require_fitted()
        names = ("means", "whitenings", "log_determinants")
        nearest = features.new_full((len(features),), torch.inf)
        for mean, whitening, log_determinant in zip(
            *(learned[name] for name in names), strict=True
        ):
            distance = ((features - mean) @ whitening).square().sum(1)
            nearest = nearest.minimum(distance + log_determinant)
        return nearest


def _fit_gaussians(features: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Means ``[C, d]``, whitening matrices ``[C, d, d]`` and log determinants ``[C]``."""
    groups = [features[classes == c] for c in torch.unique(classes)]
    groups = [group for group in groups if len(group) >= 2]
    if not groups:
        raise InputError(
            f"no two of the {len(features)} normal inputs are predicted to be of the same class; "
            "give more normal inputs"
        )
    means = torch.stack([group.mean(0) for group in groups])
    residuals = torch.cat([group - mean for group, mean in zip(groups, means, strict=True)])
    pooled, prior = covariance(residuals), features.shape[1]
    whitenings = torch.stack(
        [
            whitening_matrix((len(g) * covariance(g) + prior * pooled) / (len(g) + prior))
            for g in groups
        ]
    )
    # Σ⁻¹ = W Wᵀ
    log_determinants = -2 * torch.linalg.slogdet(whitenings).logabsdet
    return {"means": means, "whitenings": whitenings, "log_determinants": log_determinants}
