"""What was tried for the ambitions: other measures of novelty, vectors, fusions and networks.

On the development half of the sets with the committed classifier, and on the near-anomalous classes
of one classifier.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.datasets import Suite
from benchmarks.experiments.attacked import Attacked
from benchmarks.experiments.fitted import Fitted, Scores
from benchmarks.experiments.picture_sets import DEVELOPMENT
from benchmarks.experiments.protocols import Study, Supervised, paper_detector
from benchmarks.experiments.rows import Row
from gradood.data import ImageSet
from gradood.detectors import PARTS, Part, vector_part
from gradood.detectors.class_gaussians import CLASS_GAUSSIANS
from gradood.detectors.fusion import agreement_weights, fit_part, score_part
from gradood.detectors.neighbours import NEIGHBOURS
from gradood.detectors.parts import read_both, read_log_norms
from gradood.detectors.presets import PRESETS
from gradood.detectors.relative import RELATIVE
from gradood.gradients import GradientNorms

_FORWARD = tuple(PRESETS["forward"])
#: What "forward" was before near-anomalous classes had a part in the choice.
_EARLIER = ("layers", "directions", "relative", "energy")
_NORMS = {
    "neighbours of norms": vector_part("tried neighbours", read_log_norms, NEIGHBOURS),
    "Gaussians of norms": vector_part("tried Gaussians", read_log_norms, CLASS_GAUSSIANS),
    "relative norms": vector_part("tried relative", read_log_norms, RELATIVE),
    "Gaussians of norms and features": vector_part("tried both", read_both, CLASS_GAUSSIANS),
}

#: Parts whose standardised scores are added, by how well they agree, without any norms.
WITHOUT: dict[str, tuple[Part, ...]] = {
    " & ".join(names): tuple(PARTS[name] for name in names)
    for names in (
        *((name,) for name in dict.fromkeys((*_FORWARD, *_EARLIER))),
        *(_FORWARD, (*_FORWARD, "directions"), (*_FORWARD, "relative")),
        *(("layers", "class energy", "relative"), ("layers", "energy", "relative logits")),
        *(("layers", "class energy"), ("layers", "relative logits"), _FORWARD[1:]),
        *(_EARLIER, _EARLIER[1:], ("layers", "energy")),
    )
}
#: With the norms of each kind.
FUSIONS: dict[str, tuple[Part, ...]] = {
    **{name: (part,) for name, part in _NORMS.items()},
    **{f"{name} & layers": (part, PARTS["layers"]) for name, part in _NORMS.items()},
    **{
        f"{name} & {' & '.join(_FORWARD)}": (part, *(PARTS[one] for one in _FORWARD))
        for name, part in _NORMS.items()
    },
}
KINDS = {
    "all-hot": ("all-hot",),
    "half of the logits": ("half of the logits",),
    "every logit": ("every logit",),
}


class Fused:
    """Weighted mean of the standardised scores of some parts."""

    def __init__(self, parts: tuple[Part, ...], fit: GradientNorms) -> None:
        fitted = [fit_part(part, fit) for part in parts]
        self._parts = [(part, learned) for part, (learned, _) in zip(parts, fitted, strict=True)]
        self._weights = agreement_weights(torch.stack([scores for _, scores in fitted], 1))

    def score(self, x: GradientNorms) -> Tensor:
        """Scores ``[N]``."""
        scores = torch.stack([score_part(part, x, learned) for part, learned in self._parts])
        return self._weights.to(scores.dtype) @ scores


def fused(study: Study, fit: ImageSet) -> dict[str, Fitted]:
    """Every fusion of every kind of norms, fitted."""
    norms = study.observer.norms(fit.pixels)
    found: dict[str, Fitted] = {name: ((), Fused(parts, norms)) for name, parts in WITHOUT.items()}
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
