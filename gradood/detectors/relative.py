"""Novelty as the distance to the nearest class, relative to that to normal data as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from gradood.detectors.class_gaussians import class_groups, within_class_covariance
from gradood.detectors.novelty import Learned, Novelty
from gradood.detectors.whitening import whitening_matrix

#: Less than elsewhere: what normal data hardly vary in is what tells others apart.
SHRINKAGE = 1e-3


def _fit(features: Tensor, classes: Tensor) -> Learned:
    groups = class_groups(features, classes)
    means, mean = torch.stack([group.mean(0) for group in groups.values()]), features.mean(0)
    within = within_class_covariance(groups)
    counts = means.new_tensor([len(group) for group in groups.values()])
    alone = ~torch.isin(classes, classes.new_tensor(list(groups)))
    # What deviates from the mean of all does so within its class, or with its class: one product
    # of all vectors is enough for both covariances.
    apart = torch.cat([counts.sqrt()[:, None] * (means - mean), features[alone] - mean])
    overall = ((counts.sum() - 1) * within + apart.T @ apart) / (len(features) - 1)
    return {
        "means": means,
        "whitening": whitening_matrix(within, SHRINKAGE),
        "overall_mean": mean,
        "overall_whitening": whitening_matrix(overall, SHRINKAGE),
    }


def _score(features: Tensor, classes: Tensor, learned: Learned) -> Tensor:
    overall = (features - learned["overall_mean"]) @ learned["overall_whitening"]
    centres = learned["means"] @ learned["whitening"]
    # Not by inner products, which would lose the digits of small distances.
    mode = "donot_use_mm_for_euclid_dist"
    nearest = torch.cdist(features @ learned["whitening"], centres, compute_mode=mode).amin(1)
    return nearest.square() - overall.square().sum(1)


#: ``min_c (f - μ_c)ᵀ S⁻¹ (f - μ_c) - (f - μ)ᵀ T⁻¹ (f - μ)``, S the covariance within classes and T
#: that of all vectors. Source: Ren et al., "A Simple Fix to Mahalanobis Distance for Improving
#: Near-OOD Detection", 2021.
RELATIVE = Novelty(("means", "whitening", "overall_mean", "overall_whitening"), _fit, _score)
