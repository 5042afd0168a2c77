"""Which gradient norms ``GradientDetector`` takes, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradood.detectors.class_gaussians import CLASS_GAUSSIANS
from gradood.detectors.features import log_norms
from gradood.detectors.neighbours import NEIGHBOURS
from gradood.detectors.novelty import Novelty
from gradood.detectors.relative import RELATIVE
from gradood.errors import InputError
from gradood.gradients import GradientNorms


def read_log_norms(norms: GradientNorms) -> Tensor:
    """Logarithms of all squared norms ``[N, K L]``."""
    return log_norms(norms.values)


def read_penultimate(norms: GradientNorms) -> Tensor:
    """Penultimate features ``[N, F]``.

    Raises:
        InputError: There are none.
    """
    if norms.features is None:
        raise InputError(
            "this detector also reads the penultimate features, and there are none: the last "
            "layer must be linear, its weight among the parameters, and a rule must cover it (see "
            "gradood.explain); GradientKNN reads norms alone"
        )
    return norms.features.float()


def read_logits(norms: GradientNorms) -> Tensor:
    """Logits ``[N, C]``."""
    return norms.logits.float()


def read_norms_and_penultimate(norms: GradientNorms) -> Tensor:
    """Log norms and penultimate features in one vector ``[N, K L + F]``; raises as these do."""
    return torch.cat([read_log_norms(norms), read_penultimate(norms)], 1)


class Part(NamedTuple):
    """One measure of novelty, and the vectors ``[N, F]`` that it reads."""

    vectors: Callable[[GradientNorms], Tensor]
    novelty: Novelty


class Preset(NamedTuple):
    """One backward pass for each confounding label, and the parts to be fused.

    The first part reads log norms.
    """

    labels: Callable[[int], list[str]]
    loss: str
    parts: tuple[Part, ...]


#: By name, with labels for a model of so many classes. Chosen on one half of the anomalous sets and
#: attacks of benchmarks/experiments, whose page says which and shows the other half.
PRESETS = {
    "fast": Preset(
        lambda classes: ["all_hot"],
        "bce",
        (Part(read_log_norms, NEIGHBOURS), Part(read_penultimate, RELATIVE)),
    ),
    "adversarial": Preset(
        lambda classes: ["predicted", f"k_hot:{max(1, classes // 2)}"],
        "logit",
        (Part(read_log_norms, CLASS_GAUSSIANS), Part(read_norms_and_penultimate, CLASS_GAUSSIANS)),
    ),
    "best": Preset(
        lambda classes: [f"one_hot:{c}" for c in range(classes)],
        "logit",
        (Part(read_log_norms, NEIGHBOURS), Part(read_logits, RELATIVE)),
    ),
}
