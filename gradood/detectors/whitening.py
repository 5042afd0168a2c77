"""Whitening: linear maps that make features uncorrelated, with unit variance."""

from __future__ import annotations

import torch
from torch import Tensor

#: Added to every eigenvalue, relative to their mean: neighbouring layers' norms correlate so
#: strongly that the smallest eigenvalues of a sample covariance are noise.
SHRINKAGE = 1e-2

#: Least mean of the eigenvalues: of standardised features, where vectors that are all alike have
#: none, and a whitening without it would be infinite.
FLOOR = 1e-6


def covariance(features: Tensor) -> Tensor:
    """Sample covariance ``[d, d]`` of ``features`` ``[N, d]``, N ≥ 2."""
    return torch.cov(features.T).reshape(features.shape[1], features.shape[1])


def whitening_matrix(covariance: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """``W = V diag((λ + s mean(λ))^-½)``: ``‖f W‖²`` is the Mahalanobis form ``fᵀ Σ⁻¹ f``.

    ``V diag(λ) Vᵀ`` is ``covariance`` ``[d, d]``, best in float64, and ``s`` the shrinkage; the
    mean is at least ``FLOOR``.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    scale = (eigenvalues.clamp_min(0) + shrinkage * eigenvalues.mean().clamp_min(FLOOR)).rsqrt()
    whitening: Tensor = eigenvectors * scale
    return whitening
