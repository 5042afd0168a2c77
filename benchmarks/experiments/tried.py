"""What was tried for the ambitions: other measures of novelty, vectors, fusions and networks.

On the development half of the sets with the committed classifier, and on the near-anomalous classes
of one classifier, which were looked at when ``"best"`` was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.experiments.attacked import Attacked
from benchmarks.experiments.picture_sets import DEVELOPMENT
from benchmarks.experiments.protocols import Fitted, Scores, Study, Supervised, paper_detector
from benchmarks.experiments.rows import Row
from gradood.data import ImageSet, Suite
from gradood.detectors.class_gaussians import CLASS_GAUSSIANS
from gradood.detectors.gradient import fit_part, score_part
from gradood.detectors.neighbours import NEIGHBOURS
from gradood.detectors.presets import (
    Part,
    read_log_norms,
    read_logits,
    read_norms_and_penultimate,
    read_penultimate,
)
from gradood.detectors.relative import RELATIVE
from gradood.gradients import GradientNorms

_NEAREST, _GAUSSIAN = Part(read_log_norms, NEIGHBOURS), Part(read_log_norms, CLASS_GAUSSIANS)
_BOTH = Part(read_norms_and_penultimate, CLASS_GAUSSIANS)
_FEATURES, _LOGITS = Part(read_penultimate, RELATIVE), Part(read_logits, RELATIVE)

#: Parts whose standardised scores are added; norms are read as logarithms.
FUSIONS = {
    "neighbours": (_NEAREST,),
    "class Gaussians": (_GAUSSIAN,),
    "relative": (Part(read_log_norms, RELATIVE),),
    "neighbours & features, relative": (_NEAREST, _FEATURES),
    "neighbours & logits, relative": (_NEAREST, _LOGITS),
    "neighbours, twice, & logits, relative": (_NEAREST, _NEAREST, _LOGITS),
    "neighbours & logits and features, relative": (_NEAREST, _FEATURES, _LOGITS),
    "neighbours & features, neighbours": (_NEAREST, Part(read_penultimate, NEIGHBOURS)),
    "neighbours & features, class Gaussians": (_NEAREST, Part(read_penultimate, CLASS_GAUSSIANS)),
    "class Gaussians & features, relative": (_GAUSSIAN, _FEATURES),
    "class Gaussians & features, class Gaussians": (
        *(_GAUSSIAN, Part(read_penultimate, CLASS_GAUSSIANS)),
    ),
    "norms and features in one vector, neighbours": (Part(read_norms_and_penultimate, NEIGHBOURS),),
    "norms and features in one vector, class Gaussians": (_BOTH,),
    "class Gaussians & norms and features in one vector, class Gaussians": (_GAUSSIAN, _BOTH),
}
KINDS = {
    "all-hot": ("all-hot",),
    "predicted logit + half of the logits": ("predicted logit", "half of the logits"),
    "every logit": ("every logit",),
}


class Fused:
    """Sum of the standardised scores of some parts."""

    def __init__(self, parts: tuple[Part, ...], fit: GradientNorms) -> None:
        self._parts = [(part, fit_part(part, fit)) for part in parts]

    def score(self, x: GradientNorms) -> Tensor:
        """Scores ``[N]``."""
        return torch.stack([score_part(part, x, learned) for part, learned in self._parts]).sum(0)


def fused(study: Study, fit: ImageSet) -> dict[str, Fitted]:
    """Every fusion of every kind of norms, fitted."""
    alone = {"features": _FEATURES, "logits": _LOGITS}
    norms = study.observer.norms(fit.pixels, "all-hot")
    found: dict[str, Fitted] = {
        f"{name}, relative": (("all-hot",), Fused((part,), norms)) for name, part in alone.items()
    }
    return found | {
        f"{label}: {name}": (kinds, Fused(parts, study.observer.norms(fit.pixels, *kinds)))
        for label, kinds in KINDS.items()
        for name, parts in FUSIONS.items()
    }


def tried(study: Study, suite: Suite, attacked: Mapping[str, Attacked]) -> list[Row]:
    """Fusions on the development half of the sets and attacks."""
    detectors, normal = fused(study, suite.fit), suite.normal_scored.pixels
    sets = suite.anomalous_scored
    scored = {name: one.pixels for name, one in sets.items() if name in DEVELOPMENT}
    attacks = {name: one for name, one in attacked.items() if name in DEVELOPMENT}
    images = {name: one.scored for name, one in attacks.items()}
    originals = {name: one.originals for name, one in attacks.items()}
    rows = study.rows("tried", detectors, normal, scored)
    return rows + study.rows("tried, attacks", detectors, normal, images, originals)


def tried_networks(study: Study, suite: Suite) -> list[Row]:
    """The paper's detector with other networks, on the development half of the sets."""
    known, scored = (
        {name: one.pixels for name, one in sets.items() if name in DEVELOPMENT}
        for sets in (suite.anomalous_known, suite.anomalous_scored)
    )
    normal = suite.normal_known.pixels, suite.normal_scored.pixels
    return study.paper("tried, supervised", normal, known, scored, NETWORKS)


class _Ensemble:
    """The mean of networks from several initial weights."""

    def __init__(self, study: Study, seed: int) -> None:
        self._members = [paper_detector(study, 5 * seed + i) for i in range(5)]

    def fit(self, normal: GradientNorms, anomalies: GradientNorms) -> Scores:
        for member in self._members:
            member.fit(normal, anomalies)
        return self

    def score(self, x: GradientNorms) -> Tensor:
        return torch.stack([member.score(x) for member in self._members]).mean(0)


#: What the paper's detector was replaced by.
NETWORKS = {
    "all-hot": Supervised(("all-hot",), paper_detector),
    "all-hot, mean of five networks": Supervised(("all-hot",), _Ensemble),
    "all-hot + CE-uniform": Supervised(("all-hot", "CE-uniform"), paper_detector),
    "all-hot + CE-uniform, mean of five networks": Supervised(("all-hot", "CE-uniform"), _Ensemble),
}
