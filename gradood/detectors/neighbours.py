"""Novelty as the distance to the k-th nearest normal vector."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gradood.detectors.class_gaussians import class_groups, within_class_covariance
from gradood.detectors.novelty import Learned, Novelty
from gradood.detectors.whitening import whitening_matrix
from gradood.errors import InputError

COUNT = 5

#: Less than elsewhere: one covariance for all classes is well determined.
SHRINKAGE = 1e-3

#: Normal vectors kept, evenly spread over those given: more cost time and memory, and tell little.
BANK = 4096

#: Squared distances held at once, 256 MB in float32.
_MAX_DISTANCES = 2**26


def nearest(queries: Tensor, bank: Tensor, count: int) -> Tensor:
    """Euclidean distance ``[M]`` of each query ``[M, d]`` to the count-th nearest in the bank.

    One product finds the nearest, up to rounding; their distances are then computed without it.
    """
    lengths = bank.square().sum(1)
    found = []
    for chunk in torch.split(queries, max(1, _MAX_DISTANCES // len(bank))):
        with torch.no_grad():
            # ‖q − b‖² but for ‖q‖², which is the same for all.
            compared = torch.addmm(lengths, chunk, bank.T, alpha=-2)
            places = compared.topk(count, 1, largest=False, sorted=False).indices
        differences = chunk[:, None] - bank[places]
        found.append((differences.square().sum(2).amax(1) + torch.finfo(chunk.dtype).tiny).sqrt())
    return torch.cat(found) if found else queries.new_empty(0)


def spread(vectors: Tensor) -> Tensor:
    """At most ``BANK`` of the vectors, evenly spread.

    Raises:
        InputError: There are fewer than a neighbour needs.
    """
    if len(vectors) < COUNT:
        raise InputError(
            f"{len(vectors)} normal inputs have no {COUNT}-th nearest neighbour; give more"
        )
    return vectors[:: -(-len(vectors) // BANK)]


def _fit(features: Tensor, classes: Tensor) -> Learned:
    if len(features) < COUNT:
        spread(features)
    covariance = within_class_covariance(class_groups(features, classes))
    whitening = whitening_matrix(covariance, SHRINKAGE)
    return {"whitening": whitening, "bank": spread(features) @ whitening}


def _score(features: Tensor, classes: Tensor, learned: Learned) -> Tensor:
    return nearest(features @ learned["whitening"], learned["bank"], COUNT)


#: Distance to the 5th nearest, whitened within classes.
NEIGHBOURS = Novelty(("whitening", "bank"), _fit, _score)


def _fit_directions(features: Tensor, classes: Tensor) -> Learned:
    return {"directions": normalize(spread(features), dim=1)}


def _score_directions(features: Tensor, classes: Tensor, learned: Learned) -> Tensor:
    return nearest(normalize(features, dim=1), learned["directions"], COUNT)


#: ``‖f / ‖f‖ − f_k / ‖f_k‖‖``, f_k the 5th nearest in direction. Source: Sun et al.,
#: "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022.
DIRECTIONS = Novelty(("directions",), _fit_directions, _score_directions)
