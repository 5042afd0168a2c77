"""Which detector is fitted on what, and scored on what: every part of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.datasets import Suite
from benchmarks.experiments.attacked import Attacked
from benchmarks.experiments.fitted import (
    UNSUPERVISED,
    Fitted,
    Scores,
    own_detectors,
    peer_detectors,
)
from benchmarks.experiments.observations import BF16, SCORED, Observer
from benchmarks.experiments.rows import FAILED, Row, measured
from gradood.data import ImageSet
from gradood.detectors import (
    ConfoundingDetector,
)
from gradood.detectors.class_gaussians import CLASS_GAUSSIANS
from gradood.detectors.features import Standardiser
from gradood.detectors.neighbours import NEIGHBOURS
from gradood.detectors.novelty import Novelty
from gradood.detectors.relative import RELATIVE
from gradood.gradients import GradientNorms

NOISE = ("uniform-noise", "gaussian-noise")


class Supervised(NamedTuple):
    """A detector that trains on anomalies, for a study and a seed, and the norms that it reads."""

    kinds: tuple[str, ...]
    build: Callable[[Study, int], Any]


class Study:
    """One classifier, observed, and one seed of splits and fits."""

    def __init__(self, observer: Observer, classifier: str, seed: int) -> None:
        self.observer, self.classifier, self.seed = observer, classifier, seed
        #: Peers that do not run, and why.
        self.failed: dict[str, str] = {}

    def row(self, part: str, detector: str, name: str, normal: Tensor, other: Tensor) -> Row:
        """One row of this study."""
        return measured(part, self.classifier, self.seed, detector, name, normal, other)

    def failures(self) -> list[Row]:
        """A row for every peer that does not run here; in place of a set it says why."""
        nothing = (math.nan, math.nan, math.nan, 0, 0)
        return [
            Row(FAILED, self.classifier, self.seed, name, reason, *nothing)
            for name, reason in self.failed.items()
        ]

    def rows(
        self,
        part: str,
        detectors: Mapping[str, Fitted],
        normal: Tensor,
        others: Mapping[str, Tensor],
        originals: Mapping[str, Tensor] | None = None,
    ) -> list[Row]:
        """Every fitted detector on every set; against rows of ``normal`` where they are given."""
        found = []
        for detector, (kinds, fitted) in detectors.items():
            usual = self.scores(kinds, fitted, normal)
            for name, images in others.items():
                against = usual[originals[name]] if originals else usual
                scores = self.scores(kinds, fitted, images)
                found.append(self.row(part, detector, name, against, scores))
        return found

    def scores(self, kinds: tuple[str, ...] | None, fitted: Scores, images: Tensor) -> Tensor:
        """Those of uint8 pictures."""
        return fitted.score(images if kinds is None else self.observer.norms(images, *kinds))

    def unsupervised(
        self,
        fit: ImageSet,
        peers: bool,
        kinds: tuple[str, ...] = SCORED,
        pictures: bool = True,
        without: Collection[str] = (),
    ) -> dict[str, Fitted]:
        """Every detector that needs no anomalies and no other kinds of norms, fitted.

        ``pictures``: with the peers that read pictures; ``without``: names that are left out.
        """
        found = own_detectors(self.observer, fit, kinds, self.seed, without)
        if peers:
            found |= peer_detectors(self.observer, fit, pictures, without, self.failed)
        return found

    def supervised(self, suite: Suite) -> list[Row]:
        """The paper's detector on sets: the same set, one left out, noise only, activations."""
        known = {name: one.pixels for name, one in suite.anomalous_known.items()}
        scored = {name: one.pixels for name, one in suite.anomalous_scored.items()}
        normal = suite.normal_known.pixels, suite.normal_scored.pixels
        rows = self.paper("supervised", normal, known, scored, PAPER)
        noise = tuple(name for name in known if name in NOISE)
        trained = self.train(PAPER["all-hot"], normal[0], [known[name] for name in noise])
        detectors = {"all-hot, trained on noise only": (("all-hot",), trained)}
        return rows + self.rows("supervised", detectors, normal[1], scored)

    def supervised_attacks(self, suite: Suite, attacked: Mapping[str, Attacked]) -> list[Row]:
        """The same on attacks, against their own originals."""
        known = {name: one.known for name, one in attacked.items()}
        scored = {name: one.scored for name, one in attacked.items()}
        originals = {name: one.originals for name, one in attacked.items()}
        normal = suite.normal_known.pixels, suite.normal_scored.pixels
        return self.paper("supervised attacks", normal, known, scored, PAPER, originals)

    def paper(
        self,
        part: str,
        normal: tuple[Tensor, Tensor],
        known: Mapping[str, Tensor],
        scored: Mapping[str, Tensor],
        variants: Mapping[str, Supervised],
        originals: Mapping[str, Tensor] | None = None,
    ) -> list[Row]:
        """Every variant of the paper's detector, trained on the same set and with it left out."""
        rows = []
        for label, variant in variants.items():

            @cache
            def trained_on(names: tuple[str, ...], variant: Supervised = variant) -> Scores:
                return self.train(variant, normal[0], [known[name] for name in names])

            for name in scored:
                rest = tuple(other for other in known if other != name)
                for training, names in (("same", (name,)), ("left out", rest)):
                    detectors = {f"{label}, {training}": (variant.kinds, trained_on(names))}
                    rows += self.rows(part, detectors, normal[1], {name: scored[name]}, originals)
        return rows

    def train(self, variant: Supervised, normal: Tensor, anomalies: list[Tensor]) -> Scores:
        """A variant of the paper's detector, trained on normal and anomalous pictures."""
        parts = [self.observer.norms(one, *variant.kinds) for one in anomalies]
        known = self.observer.norms(normal, *variant.kinds)
        fitted: Scores = variant.build(self, self.seed).fit(known, GradientNorms.join(parts))
        return fitted

    def ablations(self, suite: Suite) -> list[Row]:
        """One part of the default replaced at a time."""
        return [
            *self._labels(suite),
            *self._normalisations(suite),
            *self._depths(suite),
            *self._counts(suite),
        ]

    def _labels(self, suite: Suite) -> list[Row]:
        kinds = ("all-hot", "CE-uniform", "predicted logit", "half of the logits", "every logit")
        names = {kind: (kind,) for kind in kinds} | {"all-hot + CE-uniform": kinds[:2]}
        rows = []
        for name, combined in names.items():
            for measure, novelty in MEASURES.items():
                rows += self._vectors("label", f"{name}, {measure}", suite, combined, _log, novelty)
        return rows

    def _normalisations(self, suite: Suite) -> list[Row]:
        rows = []
        for name, change in {"log": _log, "square root": torch.sqrt, "raw": _raw}.items():
            rows += self._vectors("normalisation", name, suite, ("all-hot",), change, NEIGHBOURS)
        return rows

    def _depths(self, suite: Suite) -> list[Row]:
        rows = []
        for name, start in depths(self.observer.model).items():
            last = partial(_log_from, start)
            rows += self._vectors("depth", name, suite, ("all-hot",), last, NEIGHBOURS)
        return rows

    def _counts(self, suite: Suite) -> list[Row]:
        rows = []
        for count in (100, 200, 500, 1000, 2000, 5000):
            if count > len(suite.fit):
                break
            for name in ('GradientDetector "fast"', "GradientKNN"):
                case = UNSUPERVISED[name]
                norms = self.observer.norms(suite.fit.pixels, *case.kinds)
                fitted = case.build(self.observer.model, self.seed)
                fitted.fit(norms.select(slice(None, count)))
                detectors = {f"{name}, {count}": (case.kinds, fitted)}
                rows += self._scored("normal pictures", suite, detectors)
        return rows

    def bf16(self, suite: Suite) -> list[Row]:
        """float32 against bf16 autocast, fitted and scored in the same."""
        rows = []
        for name, kind in {"float32": "all-hot", "bf16": BF16}.items():
            rows += self._vectors("precision", name, suite, (kind,), _log, NEIGHBOURS)
        return rows

    def _scored(self, part: str, suite: Suite, detectors: Mapping[str, Fitted]) -> list[Row]:
        sets = {name: one.pixels for name, one in suite.anomalous_scored.items()}
        return self.rows(part, detectors, suite.normal_scored.pixels, sets)

    def _vectors(
        self,
        part: str,
        name: str,
        suite: Suite,
        kinds: tuple[str, ...],
        change: Callable[[Tensor], Tensor],
        novelty: Novelty,
    ) -> list[Row]:
        norms = self.observer.norms(suite.fit.pixels, *kinds)
        fitted = _Measure(change, novelty, norms)
        return self._scored(part, suite, {name: (kinds, fitted)})


#: What reads vectors of log norms in the ablations.
MEASURES = {"neighbours": NEIGHBOURS, "class Gaussians": CLASS_GAUSSIANS, "relative": RELATIVE}


class _Measure:
    """One measure of novelty on changed norms, alone."""

    def __init__(
        self, change: Callable[[Tensor], Tensor], novelty: Novelty, norms: GradientNorms
    ) -> None:
        self._change, self._novelty = change, novelty
        self._standardise = Standardiser.fit(self._read(norms))
        vectors = self._standardise(self._read(norms)).double()
        self._learned = novelty.fit(vectors, norms.logits.argmax(1))

    def _read(self, norms: GradientNorms) -> Tensor:
        return self._change(norms.values).flatten(1)

    def score(self, x: GradientNorms) -> Tensor:
        vectors = self._standardise(self._read(x)).double()
        return self._novelty.score(vectors, x.logits.argmax(1), self._learned)


class _Activations:
    """The paper's detector on penultimate activations, as a control: it reads logarithms."""

    def __init__(self, detector: ConfoundingDetector) -> None:
        self._detector = detector

    def fit(self, normal: GradientNorms, anomalies: GradientNorms) -> Scores:
        self._detector.fit(_activations(normal), _activations(anomalies))
        return self

    def score(self, x: GradientNorms) -> Tensor:
        return self._detector.score(_activations(x))


def paper_detector(study: Study, seed: int) -> ConfoundingDetector:
    """The paper's detector."""
    return ConfoundingDetector(study.observer.model, seed=seed)


#: The paper's detector by the norms that it reads, and a control.
PAPER = {
    "all-hot": Supervised(("all-hot",), paper_detector),
    "all-hot + CE-uniform": Supervised(("all-hot", "CE-uniform"), paper_detector),
    "activations": Supervised(("all-hot",), lambda s, n: _Activations(paper_detector(s, n))),
}


def _activations(norms: GradientNorms) -> GradientNorms:
    assert norms.features is not None
    names = tuple(f"activation {i}" for i in range(norms.features.shape[1]))
    return GradientNorms(norms.features.clamp(-25, 25).exp(), names, norms.logits)


def _log(values: Tensor) -> Tensor:
    return values.clamp_min(1e-12).log()


def _log_from(start: int, values: Tensor) -> Tensor:
    return _log(values[..., start:])


def _raw(values: Tensor) -> Tensor:
    return values


def depths(model: nn.Module) -> dict[str, int]:
    """By how deep the backward pass goes, the first parameter that it reaches."""
    tops = [name.partition(".")[0] for name, _ in model.named_parameters()]
    first = {top: tops.index(top) for top in reversed(dict.fromkeys(tops))}
    return {f"down to {top}": start for top, start in first.items()}
