"""Whitening: linear maps that make features uncorrelated, with unit variance."""

from __future__ import annotations

from typing import NamedTuple

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


class Whitening(NamedTuple):
    """What makes features white, and how much volume they take.

    Attributes:
        matrix: ``W`` ``[d, d]`` with ``Σ⁻¹ = W Wᵀ``.
        log_determinant: ``log det Σ``, a scalar, of the shrunk covariance Σ.
    """

    matrix: Tensor
    log_determinant: Tensor


def whitening_of(covariance: Tensor, shrinkage: float = SHRINKAGE) -> Whitening:
    """``W = V diag((λ + s mean(λ))^-½)``: ``‖f W‖²`` is the Mahalanobis form ``fᵀ Σ⁻¹ f``.

    ``V diag(λ) Vᵀ`` is ``covariance`` ``[d, d]``, best in float64, and ``s`` the shrinkage; the
    mean is at least ``FLOOR``. The eigenvalues give the determinant: the LU decomposition of
    several matrices at once, which ``torch.linalg.slogdet`` takes, is wrong on some machines with
    more than one thread.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    shrunk = eigenvalues.clamp_min(0) + shrinkage * eigenvalues.mean().clamp_min(FLOOR)
    # Laid out as a file has it, so that what is loaded scores to the same last bit.
    return Whitening((eigenvectors * shrunk.rsqrt()).contiguous(), shrunk.log().sum())


def whitening_matrix(covariance: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """The matrix of ``whitening_of``."""
    return whitening_of(covariance, shrinkage).matrix
