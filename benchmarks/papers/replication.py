"""The first paper's protocol on CIFAR-10: rows of the page, each part kept under a hash."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import gradood
from benchmarks.cifar.network import load_network
from benchmarks.datasets import picture_set
from benchmarks.experiments.attacked import (
    ATTACKS as EVERY_ATTACK,
    Attack,
    Attacked,
    attacked_halves,
)
from benchmarks.experiments.observations import VERSION, Observer, digest
from benchmarks.experiments.protocols import PAPER, Study, Supervised, paper_detector
from benchmarks.experiments.rows import Row, kept
from benchmarks.papers.variants import BETTER, BY_FILTER, LIMITS, by_filter, linear
from gradood.attacks import evade, pgd
from gradood.data import ImageSet
from gradood.detectors import ConfoundingDetector, Detector, Energy, GradientDetector

SETS = (
    *("svhn-test", "cifar100-test", "tiny-imagenet", "textures", "scenes"),
    *("gtsrb", "mnist-test"),
)
ATTACKS = {name: attack for name, attack in EVERY_ATTACK.items() if "25/255" not in name}
#: Rounding to 256 levels undoes DeepFool's steps, which end just beyond a border: twice as far it
#: does not.
ATTACKS["DeepFool"] = Attack("deepfool", {"steps": 20, "overshoot": 1.0, "batch_size": 10})
#: Radii of the attacks that know the detector, of 255.
RADII = (2, 4, 8)
#: What the paper's network reads, beside what ``PAPER`` has: designs of the label, and more of it.
LABELS = {
    **{"all-hot": ("all-hot",), "zero-hot": ("zero-hot",)},
    **{"2-hot": ("2-hot",), "5-hot": ("5-hot",)},
    **{"CE-uniform": ("CE-uniform",), "half of the logits": ("half of the logits",)},
    "2 labels: all-hot, CE-uniform": ("all-hot", "CE-uniform"),
    "10 labels: every one-hot": ("every one-hot",),
}
#: What is trained on anomalies in the tables of every network.
SUPERVISED = {**PAPER, **BETTER}
#: Normal pictures, and anomalous ones a set, that norms by filter are taken of.
FEW = (300, 60)
#: The network that is attacked, and on which labels are compared; others are tried on sets alone.
MAIN = "resnet20"


class Sizes(NamedTuple):
    """How many pictures, at most.

    Attributes:
        each: Of each anomalous set, before it is halved.
        normal: Test pictures, before they are halved.
        fit: Training pictures that detectors without anomalies are fitted on.
        attacked: Pictures of each half that are attacked.
        adaptive: Pictures that attacks which know the detector are tried on.
        steps: Of these, for each of two restarts.
    """

    each: int = 2000
    normal: int = 10_000
    fit: int = 5000
    attacked: int = 300
    adaptive: int = 100
    steps: int = 40


class Replication:
    """One classifier and the halves of all sets."""

    def __init__(self, name: str, data: Path, cache: Path, sizes: Sizes) -> None:
        self.name, self._data, self._cache, self._sizes = name, data, cache, sizes
        model = load_network(data / f"weights/cifar10-{name}.safetensors")
        self._observer = Observer(model, 10, cache)
        self._study = Study(self._observer, name, 0)

    def rows(self) -> list[Row]:
        """Every part: what is kept of an earlier run, the rest computed."""
        return kept(self.name, self._parts(), self._path)

    def accuracy(self) -> float:
        """On both halves of the normal pictures, in percent."""
        halves = self._halves["normal"]
        right = [self._right(half) for half in halves]
        return 100 * float(torch.cat(right).double().mean())

    def _right(self, images: ImageSet) -> Tensor:
        assert images.labels is not None
        return self._observer.norms(images.pixels).logits.argmax(1) == images.labels

    def _parts(self) -> dict[str, Callable[[], list[Row]]]:
        study = self._study
        parts: dict[str, Callable[[], list[Row]]] = {
            "supervised": lambda: study.paper(
                "supervised", self._normal, *self._anomalous, variants=SUPERVISED
            ),
            "sets": lambda: study.rows("sets", self._detectors, self._normal[1], self._scored),
        }
        if self.name != MAIN:  # attacks cost most
            return parts
        parts["supervised attacks"] = lambda: self._supervised_attacks(
            "supervised attacks", SUPERVISED
        )
        parts["attacks"] = self._attacks
        labels = {name: Supervised(kinds, paper_detector) for name, kinds in LABELS.items()}
        parts["labels, sets"] = lambda: study.paper(
            "labels, sets", self._normal, *self._anomalous, variants=labels
        )
        parts["labels, attacks"] = lambda: self._supervised_attacks("labels, attacks", labels)
        parts["limits, sets"] = lambda: study.paper(
            "limits, sets", self._normal, *self._anomalous, variants=LIMITS
        )
        parts["limits, attacks"] = lambda: self._supervised_attacks("limits, attacks", LIMITS)
        parts["filters, sets"] = self._filters
        for what in TARGETS:
            for radius in RADII:
                parts[f"adaptive, {what}, {radius}"] = partial(self._adaptive, what, radius)
        return parts

    @cached_property
    def _halves(self) -> dict[str, tuple[ImageSet, ImageSet]]:
        sets = {"normal": picture_set("cifar10-test", self._data).sample(self._sizes.normal)}
        sets |= {name: picture_set(name, self._data).sample(self._sizes.each) for name in SETS}
        return {
            name: (one.select(slice(0, len(one) // 2)), one.select(slice(len(one) // 2, None)))
            for name, one in sets.items()
        }

    @property
    def _normal(self) -> tuple[Tensor, Tensor]:
        known, scored = self._halves["normal"]
        return known.pixels, scored.pixels

    @property
    def _anomalous(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        known = {name: self._halves[name][0].pixels for name in SETS}
        return known, {name: self._halves[name][1].pixels for name in SETS}

    @property
    def _scored(self) -> dict[str, Tensor]:
        return self._anomalous[1]

    @cached_property
    def _fit(self) -> ImageSet:
        return picture_set("cifar10-train", self._data).sample(self._sizes.fit)

    @cached_property
    def _detectors(self) -> Mapping[str, Any]:
        kinds = ("all-hot", "half of the logits")
        return self._study.unsupervised(self._fit, True, kinds, pictures=False)

    @cached_property
    def _attacked(self) -> dict[str, Attacked]:
        halves, count = self._halves["normal"], self._sizes.attacked
        found = attacked_halves(self._observer, ATTACKS, *halves, count)
        return {name: a for name, a in found.items() if min(len(a.scored), len(a.known)) > 1}

    def _supervised_attacks(self, part: str, variants: Mapping[str, Supervised]) -> list[Row]:
        known = {name: one.known for name, one in self._attacked.items()}
        scored = {name: one.scored for name, one in self._attacked.items()}
        originals = {name: one.originals for name, one in self._attacked.items()}
        return self._study.paper(part, self._normal, known, scored, variants, originals)

    def _filters(self) -> list[Row]:
        """A norm a filter against a norm a tensor, on the same few pictures."""
        count, each = FEW
        normal = (self._normal[0][:count], self._normal[1][:count])
        sets = [{name: x[:each] for name, x in half.items()} for half in self._anomalous]
        usual = {"linear, a norm a tensor": linear("norms")}
        part = "filters, sets"
        rows = self._study.paper(part, normal, *sets, variants=usual)
        return rows + by_filter(self._study).paper(part, normal, *sets, variants=BY_FILTER)

    def _attacks(self) -> list[Row]:
        images = {name: one.scored for name, one in self._attacked.items()}
        originals = {name: one.originals for name, one in self._attacked.items()}
        detectors, normal = self._detectors, self._normal[1]
        return self._study.rows("attacks", detectors, normal, images, originals)

    def _adaptive(self, what: str, radius: int) -> list[Row]:
        """One detector's AUROC on PGD, and on an attack that knows the detector."""
        scored = self._halves["normal"][1]
        rows = self._right(scored).nonzero()[: self._sizes.adaptive, 0]
        images = scored.select(rows)
        assert images.labels is not None
        target, epsilon = TARGETS[what](self), radius / 255
        plain = pgd(self._observer.model, images.images, labels=images.labels, epsilon=epsilon)
        usual = target.score(images.images)
        options: dict[str, Any] = {"epsilon": epsilon, "steps": self._sizes.steps, "restarts": 2}
        options["state"] = self._path(f"{what} {radius}").with_suffix(".attack")
        model = self._observer.model
        known = evade(model, target, images.images, labels=images.labels, batch_size=50, **options)
        found = []
        for name, works, scores in (
            ("PGD", plain.success_rounded, target.score(plain.rounded)),
            ("adaptive", known.success_rounded, known.score_rounded),
        ):
            if works.sum() > 1:
                against, other = usual[works], scores[works]
                name = f"{name} {radius}/255"
                found.append(self._study.row("adaptive", what, name, against, other))
        return found

    def confounding(self, names: tuple[str, ...]) -> ConfoundingDetector:
        """The paper's detector, trained on these attacks on the known half."""
        study, attacked = self._study, self._attacked
        known = [attacked[name].known for name in names if name in attacked]
        detector = study.train(PAPER["all-hot"], self._normal[0], known)
        assert isinstance(detector, ConfoundingDetector)
        return detector

    def gradient(self, preset: str) -> GradientDetector:
        """A detector that sees no anomalies, fitted on pictures."""
        return GradientDetector(self._observer.model, preset=preset).fit(self._fit.images)

    def energy(self) -> Energy:
        """A control without any gradient."""
        return Energy(self._observer.model)

    def _path(self, part: str) -> Path:
        """Under a hash of the part, the weights, the sizes and the code."""
        package, here = Path(gradood.__file__).parent, Path(__file__).parents[1]
        code = [Path(__file__), here / "experiments/attacked.py", here / "experiments/protocols.py"]
        code.append(here / "papers/variants.py")
        code += sorted([*package.glob("detectors/*.py"), *package.glob("attacks/*.py")])
        content = [path.read_bytes() for path in code]
        content += [t.numpy().tobytes() for t in self._observer.model.state_dict().values()]
        content.append(f"{part} {self._sizes} {VERSION} {torch.__version__}".encode())
        path = self._cache / "papers" / f"{self.name}-{digest(content)[:12]}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


#: What is attacked by one who knows it.
TARGETS: dict[str, Callable[[Replication], Detector]] = {
    "paper's, trained on PGD 8/255": lambda r: r.confounding(("PGD 8/255",)),
    "paper's, trained on every attack": lambda r: r.confounding(tuple(ATTACKS)),
    'GradientDetector "fast"': lambda r: r.gradient("fast"),
    'GradientDetector "adversarial"': lambda r: r.gradient("adversarial"),
    "Energy": Replication.energy,
}


def run(name: str, data: Path, cache: Path, sizes: Sizes) -> tuple[float, list[Row]]:
    """One network's accuracy, and all of its rows."""
    one = Replication(name, data, cache, sizes)
    return one.accuracy(), one.rows()
