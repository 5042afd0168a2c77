"""Which detector is fitted on what, and scored on what, for each network: rows of the page."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cifar.network import load_network
from benchmarks.cifar.sets import CONTROL, anomalous_sets, control
from benchmarks.datasets import picture_set
from benchmarks.experiments.attacked import Attack
from benchmarks.experiments.figures import Curves
from benchmarks.experiments.fitted import Fitted, code_of, own_detectors, peer_detectors
from benchmarks.experiments.observations import Observer, digest
from benchmarks.experiments.protocols import Study
from benchmarks.experiments.rows import Row, kept
from gradood.data import ImageSet

log = logging.getLogger("gradood")

#: What detectors read beside logits, features and activations.
KINDS = ("all-hot",)
#: Rounded to 256 levels; those that fool are scored against their originals.
ATTACKS = {
    "FGSM 8/255": Attack("fgsm", {"epsilon": 8 / 255}),
    "PGD 2/255": Attack("pgd", {"epsilon": 2 / 255}),
    "PGD 8/255": Attack("pgd", {"epsilon": 8 / 255}),
    "BIM 4/255": Attack("bim", {"epsilon": 4 / 255}),
}
#: Detectors whose ROC curves are drawn.
DRAWN = (
    *('GradientDetector "forward"', 'GradientDetector "fast"', "Energy"),
    *("pytorch-ood PNML", "pytorch-ood NCI", "pytorch-ood KNN"),
)
#: The network whose attacked pictures are scored.
ATTACKED = "resnet20"


@dataclass(frozen=True)
class Protocol:
    """How much of everything.

    Attributes:
        fits: Numbers of normal pictures to fit on; all but the first with ``ATTACKED`` alone.
        seeds: Random fits of each number; one of all.
        count: Pictures of each anomalous set at most.
        normal: Normal pictures that are scored.
        attacked: Rightly classified pictures that are attacked; 0 for no attacks.
        peers: Whether pytorch-ood's detectors take part.
        without: Detectors that are left out, by their names in tables.
        pictures: Whether those that read pictures do on every network, not on ``ATTACKED`` alone.
    """

    fits: tuple[int, ...] = (5000, 500, 50_000)
    seeds: int = 3
    count: int = 2000
    normal: int = 5000
    attacked: int = 300
    peers: bool = True
    pictures: bool = True
    without: tuple[str, ...] = ()


class Network:
    """One classifier, its observations, and the sets."""

    def __init__(self, name: str, data: Path, cache: Path, protocol: Protocol) -> None:
        self.name, self._data, self._cache, self._protocol = name, data, cache, protocol
        model = load_network(data / f"weights/cifar10-{name}.safetensors")
        self._observer = Observer(model, 10, cache)

    @cached_property
    def _train(self) -> ImageSet:
        return picture_set("cifar10-train", self._data)

    @cached_property
    def _normal(self) -> ImageSet:
        return picture_set("cifar10-test", self._data).sample(self._protocol.normal)

    @cached_property
    def _sets(self) -> dict[str, Tensor]:
        found = anomalous_sets(self._data, self._protocol.count)
        found[CONTROL] = control(self._normal.select(slice(0, self._protocol.count // 2)))
        return {name: images.pixels for name, images in found.items()}

    def accuracy(self) -> float:
        """On the normal pictures that are scored, in percent."""
        assert self._normal.labels is not None
        right = self._observer.norms(self._normal.pixels).logits.argmax(1) == self._normal.labels
        return 100 * float(right.double().mean())

    def curves(self) -> Curves:
        """Scores of the first fit, of some detectors on every set."""
        study = Study(self._observer, self.name, 0)
        chosen = self._train.sample(self._protocol.fits[0], seed=0)
        detectors = study.unsupervised(chosen, self._protocol.peers, KINDS, pictures=False)
        found: Curves = {}
        for name, pixels in self._sets.items():
            for detector in [one for one in DRAWN if one in detectors]:
                found.setdefault(name, {})[detector] = tuple(
                    study.scores(*detectors[detector], one) for one in (self._normal.pixels, pixels)
                )
        return found

    def rows(self) -> Iterator[list[Row]]:
        """A fit after the other; each is complete in itself."""
        # Of other numbers one network tells enough.
        for fit in self._protocol.fits if self.name == ATTACKED else self._protocol.fits[:1]:
            for seed in range(self._protocol.seeds if fit < len(self._train) else 1):
                start = time.monotonic()
                yield self._fitted_rows(fit, seed)
                log.info("%s, %d, fit %d: %.0f s", self.name, fit, seed, time.monotonic() - start)

    def _fitted_rows(self, count: int, seed: int) -> list[Row]:
        chosen = self._train.sample(count, seed=seed)
        makers = {"ours": partial(self._own_rows, chosen, count, seed)}
        if self._protocol.peers:
            makers["peers"] = partial(self._peer_rows, chosen, count, seed)

        def path(part: str) -> Path:
            code = [Path(__file__), *code_of(part == "peers")]
            content = [one.read_bytes() for one in code]
            content += [t.numpy().tobytes() for t in self._observer.model.state_dict().values()]
            sets = (chosen.pixels, self._normal.pixels, *self._sets.values())
            content += [t.numpy().tobytes() for t in sets]
            told = count, seed, self._once(count, seed), self._protocol.attacked
            content.append(f"{told} {self._reads(count, seed)} {self._protocol.without}".encode())
            name = f"cifar-{self.name}-{part}-{digest(content)[:12]}.csv"
            return self._cache / "rows" / name

        return kept(f"{self.name}, {count}, fit {seed}", makers, path)

    def _once(self, count: int, seed: int) -> bool:
        """Whether this fit is the first one."""
        return count == self._protocol.fits[0] and not seed

    def _reads(self, count: int, seed: int) -> bool:
        """Whether peers that read pictures take part.

        Other fits and numbers have little to say to them, and cost hours.
        """
        here = self._protocol.pictures or self.name == ATTACKED
        return self._once(count, seed) and here

    def _own_rows(self, chosen: ImageSet, count: int, seed: int) -> list[Row]:
        study = Study(self._observer, self.name, seed)
        detectors = own_detectors(self._observer, chosen, KINDS, seed, self._protocol.without)
        return self._scored(study, detectors, count)

    def _peer_rows(self, chosen: ImageSet, count: int, seed: int) -> list[Row]:
        study = Study(self._observer, self.name, seed)
        reads, without = self._reads(count, seed), self._protocol.without
        detectors = peer_detectors(self._observer, chosen, reads, without, study.failed)
        return self._scored(study, detectors, count) + study.failures()

    def _scored(self, study: Study, detectors: Mapping[str, Fitted], count: int) -> list[Row]:
        rows = study.rows(f"sets, {count}", detectors, self._normal.pixels, self._sets)
        once = self._once(count, study.seed) and self.name == ATTACKED
        return rows + (self._attacked_rows(study, detectors) if once else [])

    def _attacked_rows(self, study: Study, detectors: Mapping[str, Fitted]) -> list[Row]:
        if not self._protocol.attacked:
            return []
        images, originals = {}, {}
        for name, attack in ATTACKS.items():
            made = self._attacked(name, attack)
            images[name], originals[name] = made["attacked"], made["rows"]
        return study.rows("attacks", detectors, self._normal.pixels, images, originals)

    def _attacked(self, name: str, attack: Attack) -> dict[str, Tensor]:
        observer, normal = self._observer, self._normal
        key = [b"attack", str((attack, self._protocol.attacked)).encode()]

        def make() -> dict[str, Tensor]:
            assert normal.labels is not None
            predicted = observer.norms(normal.pixels).logits.argmax(1)
            rows = (predicted == normal.labels).nonzero()[: self._protocol.attacked, 0]
            result = attack(observer.model, normal.images[rows], normal.labels[rows])
            works = result.success_rounded
            pixels = (result.rounded[works] * 255).round().to(torch.uint8)
            return {"attacked": pixels, "rows": rows[works]}

        return observer.kept([*key, normal.pixels.numpy().tobytes()], make)


def run(name: str, data: Path, cache: Path, protocol: Protocol) -> tuple[float, list[Row], Curves]:
    """One network's accuracy, all of its rows, and scores to draw."""
    one = Network(name, data, cache, protocol)
    found = [row for rows in one.rows() for row in rows]
    return one.accuracy(), found, one.curves()
