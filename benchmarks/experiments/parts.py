"""The parts of the page for one classifier, each kept under a hash of what it depends on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import gradood
from benchmarks.datasets import Suite, evaluation_suite
from benchmarks.experiments.attacked import Attacked, attacked_sets
from benchmarks.experiments.classifiers import MAIN, Classifier
from benchmarks.experiments.fitted import Fitted, code_of, own_detectors, peer_detectors
from benchmarks.experiments.observations import KNOWN, SCORED, VERSION, Observer, digest
from benchmarks.experiments.picture_sets import embedded_suite, near_suite
from benchmarks.experiments.protocols import Study
from benchmarks.experiments.rows import Row, kept
from benchmarks.experiments.tried import NETWORKS, fused, tried, tried_networks
from gradood.data import ImageSet


class Sizes(NamedTuple):
    """How many pictures: a set at most, to fit on, to score as normal, to attack."""

    count: int
    fit: int
    normal: int
    attacked: int


#: Ends the names of parts that do not depend on our detectors.
PEERS = ", peers"
#: What the page is meant for, and a quick look at the pictures in the package.
FULL, SMALL = Sizes(1000, 5000, 5000, 300), Sizes(24, 120, 120, 20)


def rows_of(one: Classifier, sizes: Sizes, cache: Path) -> list[Row]:
    """Every part for one classifier; its seed is that of the splits and fits, too."""
    run = (_Near if one.held_out else _Run)(one, sizes, cache)
    return kept(one.name, run.parts(), lambda part: _path(part, one, sizes, cache))


def suite_of(seed: int, sizes: Sizes) -> Suite:
    """The splits of a seed, at these sizes."""
    if sizes == SMALL:
        return embedded_suite(seed, sizes.count)
    suite = evaluation_suite(count=sizes.count, seed=seed)
    few = slice(None, sizes.fit)
    return replace(
        suite,
        fit=suite.fit.select(few),
        normal_known=suite.normal_known.select(few),
        normal_scored=suite.normal_scored.select(slice(None, sizes.normal)),
    )


class _Scored(ABC):
    """A classifier, and what it observes."""

    def __init__(self, one: Classifier, sizes: Sizes, cache: Path) -> None:
        self._one, self._sizes = one, sizes
        self._observer = Observer(one.load(cache), 10 - len(one.held_out), cache)
        self._study = Study(self._observer, one.name, one.seed)

    @property
    @abstractmethod
    def _fit(self) -> ImageSet:
        """Normal pictures, for detectors that need no anomalies."""

    @cached_property
    def _own(self) -> dict[str, Fitted]:
        return own_detectors(self._observer, self._fit, SCORED, self._one.seed)

    @cached_property
    def _peers(self) -> dict[str, Fitted]:
        return peer_detectors(self._observer, self._fit, True, (), self._study.failed)


class _Run(_Scored):
    """The parts that a classifier of all classes has."""

    def parts(self) -> dict[str, Callable[[], list[Row]]]:
        """By name, in the order of the page."""
        common: dict[str, Callable[[], list[Row]]] = {
            "sets": lambda: self._sets(self._own),
            f"sets{PEERS}": lambda: self._sets(self._peers),
            "supervised": lambda: self._study.supervised(self._suite),
            "attacks": lambda: self._attacks(self._own),
            f"attacks{PEERS}": lambda: self._attacks(self._peers),
            "supervised attacks": lambda: self._study.supervised_attacks(
                self._suite, self._attacked
            ),
        }
        if self._one.architecture != MAIN:
            return common
        common |= {
            "ablations": lambda: self._study.ablations(self._suite),
            "five networks": self._five_networks,
        }
        if not self._one.committed:
            return common
        return common | {
            "precision": lambda: self._study.bf16(self._suite),
            "tried": lambda: tried(self._study, self._suite, self._attacked),
            "tried networks": lambda: tried_networks(self._study, self._suite),
        }

    @cached_property
    def _suite(self) -> Suite:
        suite = suite_of(self._one.seed, self._sizes)
        scored = (suite.fit, suite.normal_scored, *suite.anomalous_scored.values())
        self._observer.observe([images.pixels for images in scored])
        known = (suite.normal_known, *suite.anomalous_known.values())
        self._observer.observe([images.pixels for images in known], KNOWN)
        return suite

    @property
    def _fit(self) -> ImageSet:
        return self._suite.fit

    @cached_property
    def _attacked(self) -> dict[str, Attacked]:
        made = attacked_sets(self._observer, self._suite, self._sizes.attacked)
        found = {name: a for name, a in made.items() if min(len(a.scored), len(a.known)) > 1}
        self._observer.observe([a.scored for a in found.values()])
        self._observer.observe([a.known for a in found.values()], KNOWN)
        return found

    def _sets(self, detectors: dict[str, Fitted]) -> list[Row]:
        scored = {name: images.pixels for name, images in self._suite.anomalous_scored.items()}
        normal = self._suite.normal_scored.pixels
        return self._study.rows("sets", detectors, normal, scored)

    def _five_networks(self) -> list[Row]:
        known, scored = (
            {of: images.pixels for of, images in sets.items()}
            for sets in (self._suite.anomalous_known, self._suite.anomalous_scored)
        )
        normal = self._suite.normal_known.pixels, self._suite.normal_scored.pixels
        name = "all-hot, mean of five networks"
        return self._study.paper("five networks", normal, known, scored, {name: NETWORKS[name]})

    def _attacks(self, detectors: dict[str, Fitted]) -> list[Row]:
        images = {name: a.scored for name, a in self._attacked.items()}
        originals = {name: a.originals for name, a in self._attacked.items()}
        normal = self._suite.normal_scored.pixels
        return self._study.rows("attacks", detectors, normal, images, originals)


class _Near(_Scored):
    """The parts that a classifier without some classes has."""

    def parts(self) -> dict[str, Callable[[], list[Row]]]:
        """By name, in the order of the page."""
        found = {
            "near": lambda: self._rows("near", self._own),
            f"near{PEERS}": lambda: self._rows("near", self._peers),
        }
        if self._one.seed == 0:
            found["tried, near"] = lambda: self._rows("tried, near", fused(self._study, self._fit))
        return found

    @cached_property
    def _sets(self) -> tuple[ImageSet, Tensor, dict[str, Tensor]]:
        fit, normal, near = near_suite(self._one.seed, self._sizes.fit)
        usual = normal.pixels[: self._sizes.normal]
        others = {name: images.pixels for name, images in near.items()}
        self._observer.observe([fit.pixels, usual, *others.values()])
        return fit, usual, others

    @property
    def _fit(self) -> ImageSet:
        return self._sets[0]

    def _rows(self, part: str, detectors: dict[str, Fitted]) -> list[Row]:
        _, normal, others = self._sets
        return self._study.rows(part, detectors, normal, others)


def _path(part: str, one: Classifier, sizes: Sizes, cache: Path) -> Path:
    """Where rows are kept: under a hash of the part, the weights, the sizes and the code."""
    here, package = Path(__file__).parent, Path(gradood.__file__).parent
    code = [here / "picture_sets.py", here / "protocols.py", here.parent / "datasets/suite.py"]
    code += code_of(part.endswith(PEERS))
    if part.removesuffix(PEERS) in ("attacks", "supervised attacks", "tried"):
        code += [here / "attacked.py", *package.glob("attacks/*.py")]
    if part.startswith("tried") or part == "five networks":
        code += [here / "tried.py"]
    content = [path.read_bytes() for path in sorted(code)]
    content += [t.numpy().tobytes() for t in one.load(cache).state_dict().values()]
    content.append(f"{part} {one.seed} {sizes} {VERSION} {torch.__version__}".encode())
    return cache / "rows" / f"{one.name}-{digest(content)[:12]}.csv"
