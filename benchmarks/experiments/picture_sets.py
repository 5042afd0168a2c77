"""What is scored: out-of-distribution, attacked and near-anomalous pictures, and their splits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.experiments.observations import Observer
from gradood import attacks
from gradood.data import (
    EMBEDDED,
    ImageSet,
    Suite,
    embedded_set,
    fashion_mnist,
    gaussian_noise,
    halve_by_group,
    inverted,
    pixel_shuffled,
    rotated,
    split_by_class,
    uniform_noise,
)
from gradood.data.fashion import CLASSES, HELD_OUT

#: The half of the sets, and the attacks, that presets were chosen on; the others were then scored
#: once. Near-anomalous classes played no part in any choice.
DEVELOPMENT = (
    *("mnist", "photos", "digits", "uniform-noise", "fashion-mnist-rotated"),
    *("FGSM 8/255", "PGD 8/255"),
)


class Attack(NamedTuple):
    """One of ``gradood.attacks``, its options, and what share of the pictures it is run on."""

    function: str
    options: dict[str, Any]
    share: float = 1.0

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor) -> Any:
        """What the attack made of ``x``."""
        return getattr(attacks, self.function)(model, x, labels, **self.options)


#: By name, in the order of tables. Small batches, where the slowest picture delays the others.
ATTACKS = {
    "FGSM 8/255": Attack("fgsm", {"epsilon": 8 / 255}),
    "FGSM 25/255": Attack("fgsm", {"epsilon": 25 / 255}),
    "BIM 8/255": Attack("bim", {"epsilon": 8 / 255}),
    "PGD 8/255": Attack("pgd", {"epsilon": 8 / 255}),
    "PGD 25/255": Attack("pgd", {"epsilon": 25 / 255}),
    "DeepFool": Attack("deepfool", {"steps": 20, "batch_size": 10}),
    "C&W": Attack("carlini_wagner", {"steps": 100, "search_steps": 4}, share=1 / 3),
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
    found = {}
    for name, attack in ATTACKS.items():
        few = max(1, round(attack.share * count))
        known = _attacked(observer, attack, suite.normal_known, few)
        scored = _attacked(observer, attack, suite.normal_scored, few)
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


def near_suite(seed: int, fit: int) -> tuple[ImageSet, ImageSet, dict[str, ImageSet]]:
    """Normal pictures to fit and to score without the held-out classes, and these, by name."""
    train = split_by_class(fashion_mnist("train"), HELD_OUT)[0].sample(fit, seed)
    kept, held_out = split_by_class(fashion_mnist("test"), HELD_OUT)
    assert held_out.labels is not None
    near = {CLASSES[c]: held_out.select(held_out.labels == c) for c in HELD_OUT}
    return train, kept, {name: replace(one, name=name) for name, one in near.items()}


def embedded_suite(seed: int, count: int = 24) -> Suite:
    """Such splits of the pictures inside the package: a few of each, and nothing to install."""
    known = embedded_set("fashion-mnist-train").sample(10 * count, seed)
    fit, normal_known = known.select(slice(None, 5 * count)), known.select(slice(5 * count, None))
    anomalous = [name for name in EMBEDDED if not name.startswith("fashion-mnist")]
    real = [embedded_set(name).sample(count, seed) for name in anomalous]
    source = normal_known.sample(count, seed)
    noise = (uniform_noise(count, seed), gaussian_noise(count, seed))
    made = (*noise, pixel_shuffled(source, seed), inverted(source), rotated(source))
    halves = {one.name: halve_by_group(one, seed) for one in (*real, *made)}
    return Suite(
        fit=fit,
        normal_known=normal_known,
        normal_scored=embedded_set("fashion-mnist").sample(5 * count, seed),
        anomalous_known={name: half for name, (half, _) in halves.items()},
        anomalous_scored={name: half for name, (_, half) in halves.items()},
    )
