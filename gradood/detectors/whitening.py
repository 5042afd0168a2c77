"""Whitening: make the normal features uncorrelated, with unit variance."""

from __future__ import annotations

import torch
from torch import Tensor

#: Added to every eigenvalue, relative to their mean: neighbouring layers' norms correlate so
#: strongly that the smallest eigenvalues of a sample covariance are noise.
SHRINKAGE = 1e-2


def whitening_matrix(features: Tensor) -> Tensor:
    """``W = V diag(1 / sqrt(λ + s mean(λ)))``, so that ``‖(f - mean) W‖²`` is the Mahalanobis form.

    ``V diag(λ) Vᵀ`` is the sample covariance and ``s`` is ``SHRINKAGE``.

    Args:
        features: ``[N, d]`` with N ≥ 2.

    Returns:
        ``[d, d]``, in ``features``' dtype and on its device; computed in float64.
    """
    covariance = torch.cov(features.double().T).reshape(features.shape[1], features.shape[1])
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    scale = (eigenvalues.clamp_min(0) + SHRINKAGE * eigenvalues.mean()).rsqrt()
    whitening: Tensor = eigenvectors * scale
    return whitening.to(features.dtype)
