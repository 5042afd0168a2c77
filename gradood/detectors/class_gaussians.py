"""Novelty as the Mahalanobis form of the predicted class's own, shrunk Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from gradood.detectors.novelty import Learned, Novelty
from gradood.detectors.whitening import covariance, whitening_of
from gradood.errors import InputError

#: What each Gaussian is made of.
GAUSSIANS = ("means", "whitenings", "log_determinants")

#: Classes with fewer normal vectors are no class of their own.
FEWEST = 2


def class_groups(features: Tensor, classes: Tensor) -> dict[int, Tensor]:
    """The vectors ``[n_c, d]`` of each predicted class that has two or more.

    Raises:
        InputError: No class has.
    """
    found = {int(c): features[classes == c] for c in torch.unique(classes)}
    groups = {c: group for c, group in found.items() if len(group) >= FEWEST}
    if not groups:
        raise InputError(
            f"no two of the {len(features)} normal inputs are predicted to be of the same class; "
            "give more normal inputs"
        )
    return groups


def within_class_covariance(groups: dict[int, Tensor]) -> Tensor:
    """Covariance ``[d, d]`` of the vectors about the means of their classes."""
    first = next(iter(groups.values()))
    scatter, count = first.new_zeros(first.shape[1], first.shape[1]), 0
    for group in groups.values():
        apart = group - group.mean(0)
        scatter.addmm_(apart.T, apart)
        count += len(group)
    return scatter / (count - 1)


def fit_gaussians(features: Tensor, classes: Tensor) -> Learned:
    """Means ``[K, d]``, whitening matrices ``[K, d, d]``, log determinants and classes ``[K]``.

    Each covariance is shrunk towards the pooled one as if d more vectors had been seen,
    ``Σ_c = (n_c S_c + d S) / (n_c + d)``; see Friedman, "Regularized Discriminant Analysis", 1989.
    """
    groups = class_groups(features, classes)
    pooled, prior = within_class_covariance(groups), features.shape[1]
    whitenings = [
        whitening_of((len(g) * covariance(g) + prior * pooled) / (len(g) + prior))
        for g in groups.values()
    ]
    return {
        "means": torch.stack([group.mean(0) for group in groups.values()]),
        "whitenings": torch.stack([w.matrix for w in whitenings]),
        "log_determinants": torch.stack([w.log_determinant for w in whitenings]),
        "classes": torch.tensor(list(groups), dtype=torch.int64, device=features.device),
    }


def distances(features: Tensor, learned: Learned) -> Tensor:
    """``(f - μ_c)ᵀ Σ_c⁻¹ (f - μ_c) + log det Σ_c`` of every vector and class, ``[M, K]``."""
    gaussians = zip(*(learned[name] for name in GAUSSIANS), strict=True)
    columns = [
        ((features - mean) @ whitening).square().sum(1) + log_determinant
        for mean, whitening, log_determinant in gaussians
    ]
    return torch.stack(columns, 1)


def _score(features: Tensor, classes: Tensor, learned: Learned) -> Tensor:
    every = distances(features, learned)
    predicted = classes[:, None] == learned["classes"]
    # A class that no normal input was predicted to be of has no Gaussian: the nearest one counts.
    own = every.masked_fill(~predicted, torch.inf).amin(1)
    return torch.where(predicted.any(1), own, every.amin(1))


CLASS_GAUSSIANS = Novelty((*GAUSSIANS, "classes"), fit_gaussians, _score)
