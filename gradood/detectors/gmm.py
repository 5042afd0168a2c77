"""Negative log density of the log gradient norms under a Gaussian mixture."""

from __future__ import annotations

import logging
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gradood.detectors.features import Standardiser, log_norms
from gradood.detectors.norm_detector import LogNormDetector
from gradood.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

    from gradood.detectors.base import Source

_LOG = logging.getLogger("gradood")

#: Added to the diagonal of every covariance of the standardised features.
_REGULARISATION = 1e-3


class GradientGMM(LogNormDetector, name="gradient-gmm"):
    """``-log Σ_k w_k N(f; μ_k, Σ_k)`` of standardised log norms f, with full covariances.

    The mixture is fitted by expectation-maximisation (scikit-learn, seeded); scores are computed in
    PyTorch on the model's device.

    Args:
        model: Classifier in eval mode.
        components: Number of Gaussians, at least 1; about the number of classes is a good choice.
        seed: Initialisation of the fit.
        **options: As in ``NormDetector``.

    Example:
        >>> detector = gradood.GradientGMM(model).fit(normal)
        >>> scores = detector.score(images)
    """

    LEARNED = LogNormDetector.LEARNED | {"log_weights", "means", "precision_roots"}

    def __init__(
        self, model: nn.Module, *, components: int = 10, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(model, **options)
        if components < 1:
            raise InputError(f"components = {components}; expected at least 1")
        self.components = components
        self.seed = seed

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"components": self.components, "seed": self.seed}

    def fit(self, normal: Source) -> Self:
        """Fit the mixture to the normal log norms; forgets the threshold.

        Args:
            normal: Normal inputs, or their ``GradientNorms``; about 100 for each component.

        Raises:
            InputError: Fewer inputs than components or than five, inputs that hold NaN or Inf, or
                all of them alike.
        """
        self._forget()
        features = log_norms(self._norms(normal, "fitting on normal inputs").values)
        if len(features) < self.components:
            raise InputError(
                f"{len(features)} normal inputs are too few for {self.components} Gaussians; "
                "give more inputs or a smaller components="
            )
        standardise = Standardiser.fit(features)
        mixture = self._fit_mixture(standardise(features).double().cpu().numpy())
        learned = {
            "log_weights": np.log(mixture.weights_),
            "means": mixture.means_,
            "precision_roots": mixture.precisions_cholesky_,
        }
        tensors = {name: torch.from_numpy(value).to(features) for name, value in learned.items()}
        self._learned = standardise._asdict() | tensors
        return self

    def _fit_mixture(self, features: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
        # Imported late: scikit-learn takes a second, and a loaded detector does without.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        mixture = GaussianMixture(
            self.components, reg_covar=_REGULARISATION, max_iter=200, random_state=self.seed
        )
        with warnings.catch_warnings():
            # Said in the log instead: a fit that still creeps upwards is as usable.
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(features)
        if not mixture.converged_:
            _LOG.info("the mixture of %d Gaussians still changes after 200 steps", self.components)
        return mixture

    def _score_features(self, features: Tensor) -> Tensor:
        learned = self.state
        roots = learned["precision_roots"]  # [K, d, d] upper triangular, Σ⁻¹ = R Rᵀ
        centred = features[None] - learned["means"][:, None]  # [K, n, d]
        distances = (centred @ roots).square().sum(2)
        log_determinants = roots.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = features.shape[1] / 2 * math.log(2 * math.pi)
        log_densities = (learned["log_weights"] + log_determinants - constant)[:, None]
        return -torch.logsumexp(log_densities - distances / 2, 0)
