"""Novelty as the distance to the k-th nearest normal vector, whitened within classes."""

from __future__ import annotations

import torch
from torch import Tensor

from gradood.detectors.class_gaussians import class_groups, within_class_covariance
from gradood.detectors.novelty import Learned, Novelty
from gradood.detectors.whitening import whitening_matrix
from gradood.errors import InputError

COUNT = 5

#: Less than elsewhere: one covariance for all classes is well determined.
SHRINKAGE = 1e-3

#: Distances held at once, 256 MB in float32.
_MAX_DISTANCES = 2**26


def nearest(queries: Tensor, bank: Tensor, count: int) -> Tensor:
    """Euclidean distance ``[M]`` of each query ``[M, d]`` to the count-th nearest in the bank."""
    distances = [
        torch.cdist(chunk, bank).kthvalue(count, 1).values
        for chunk in torch.split(queries, max(1, _MAX_DISTANCES // len(bank)))
    ]
    return torch.cat(distances)


def _fit(features: Tensor, classes: Tensor) -> Learned:
    if len(features) < COUNT:
        raise InputError(
            f"{len(features)} normal inputs have no {COUNT}-th nearest neighbour; give more"
        )
    covariance = within_class_covariance(class_groups(features, classes))
    whitening = whitening_matrix(covariance, SHRINKAGE)
    return {"whitening": whitening, "bank": features @ whitening}


def _score(features: Tensor, classes: Tensor, learned: Learned) -> Tensor:
    return nearest(features @ learned["whitening"], learned["bank"], COUNT)


NEIGHBOURS = Novelty(("whitening", "bank"), _fit, _score)
