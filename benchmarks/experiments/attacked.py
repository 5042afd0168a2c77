"""Attacked pictures: which attacks, on which pictures, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.datasets import Suite
from benchmarks.experiments.observations import Observer
from gradood import attacks
from gradood.data import ImageSet


class Attack(NamedTuple):
    """One of ``gradood.attacks`` and its options."""

    function: str
    options: dict[str, Any]

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor) -> Any:
        """What the attack made of ``x``."""
        return getattr(attacks, self.function)(model, x, labels=labels, **self.options)


#: By name, in the order of tables. DeepFool goes on until the slowest picture of a batch is done.
ATTACKS = {
    "FGSM 8/255": Attack("fgsm", {"epsilon": 8 / 255}),
    "FGSM 25/255": Attack("fgsm", {"epsilon": 25 / 255}),
    "BIM 8/255": Attack("bim", {"epsilon": 8 / 255}),
    "PGD 8/255": Attack("pgd", {"epsilon": 8 / 255}),
    "PGD 25/255": Attack("pgd", {"epsilon": 25 / 255}),
    "DeepFool": Attack("deepfool", {"steps": 20, "batch_size": 10}),
    "C&W": Attack("carlini_wagner", {"steps": 40, "search_steps": 3, "step_size": 0.03}),
    "least likely": Attack("least_likely", {"epsilon": 8 / 255}),
    "negation": Attack("negation", {}),
}


@dataclass(frozen=True)
class Attacked:
    """Pictures that an attack changed so that the classifier errs, rounded to 256 levels.

    Attributes:
        known: uint8, made from the normal pictures that a supervised detector may train on.
        scored: uint8, made from those for evaluation.
        originals: Rows of the normal pictures for evaluation that ``scored`` was made of and is
            compared with.
        success: Shares of attacked pictures that fool the classifier, before and after rounding.
    """

    known: Tensor
    scored: Tensor
    originals: Tensor
    success: tuple[float, float]


def attacked_sets(observer: Observer, suite: Suite, count: int) -> dict[str, Attacked]:
    """Every attack on ``count`` rightly classified pictures of both normal sets."""
    return attacked_halves(observer, ATTACKS, suite.normal_known, suite.normal_scored, count)


def attacked_halves(
    observer: Observer,
    attacks: Mapping[str, Attack],
    normal_known: ImageSet,
    normal_scored: ImageSet,
    count: int,
) -> dict[str, Attacked]:
    """These attacks on ``count`` rightly classified pictures of each half."""
    found = {}
    for name, attack in attacks.items():
        known = _attacked(observer, attack, normal_known, count)
        scored = _attacked(observer, attack, normal_scored, count)
        shares = scored["success"].double().mean(0).tolist()
        images = scored["attacked"], scored["rows"]
        found[name] = Attacked(known["attacked"], *images, (shares[0], shares[1]))
    return found


def _attacked(
    observer: Observer, attack: Attack, images: ImageSet, count: int
) -> dict[str, Tensor]:
    tried = images.select(slice(None, 4 * count))
    key = [b"attack", str((attack, count)).encode(), tried.pixels.numpy().tobytes()]
    return observer.kept(key, lambda: _make(observer.model, attack, tried, count))


def _make(model: nn.Module, attack: Attack, images: ImageSet, count: int) -> dict[str, Tensor]:
    assert images.labels is not None
    with torch.no_grad():
        predicted = torch.cat([model(x).argmax(1) for x in torch.split(images.images, 256)])
    rows = (predicted == images.labels).nonzero()[:count, 0]
    right = images.select(rows)
    assert right.labels is not None
    result = attack(model, right.images, right.labels)
    works = result.success_rounded
    return {
        "attacked": (result.rounded[works] * 255).round().to(torch.uint8),
        "rows": rows[works],
        "success": torch.stack([result.success, works], 1),
    }
