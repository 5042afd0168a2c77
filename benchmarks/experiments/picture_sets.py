"""What is scored: out-of-distribution, attacked and near-anomalous pictures, and their splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

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

Attack = Callable[[nn.Module, Tensor, Tensor], Any]


def _attack(name: str, **options: Any) -> Attack:
    return lambda model, x, labels: getattr(attacks, name)(model, x, labels, **options)


#: Attacks by name, in the order of tables; those that this version of the package has are run.
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "FGSM 8/255": ("fgsm", {"epsilon": 8 / 255}),
    "FGSM 25/255": ("fgsm", {"epsilon": 25 / 255}),
    "BIM 8/255": ("bim", {"epsilon": 8 / 255}),
    "PGD 8/255": ("pgd", {"epsilon": 8 / 255}),
    "PGD 25/255": ("pgd", {"epsilon": 25 / 255}),
    "DeepFool": ("deepfool", {}),
    "C&W": ("carlini_wagner", {}),
    "least likely": ("least_likely", {"epsilon": 8 / 255}),
    "negation": ("negation", {}),
}


@dataclass(frozen=True)
class Attacked:
    """Pictures that an attack changed so that the classifier errs, rounded to 256 levels.

    Attributes:
        known: uint8, made from the normal pictures that a supervised detector may train on.
        scored: uint8, made from those for evaluation.
        originals: uint8, what ``scored`` was made of: the normal pictures it is compared with.
        success: Shares of attacked pictures that fool the classifier, before and after rounding.
    """

    known: Tensor
    scored: Tensor
    originals: Tensor
    success: tuple[float, float]


def attacked_sets(observer: Observer, suite: Suite, count: int) -> dict[str, Attacked]:
    """Every attack on ``count`` rightly classified pictures of both normal sets."""
    found = {}
    for name, (function, options) in ATTACKS.items():
        if hasattr(attacks, function):
            attack = _attack(function, **options)
            known = _attacked(observer, attack, name, suite.normal_known, count)
            scored = _attacked(observer, attack, name, suite.normal_scored, count)
            shares = scored["success"].double().mean(0).tolist()
            images = scored["attacked"], scored["originals"]
            found[name] = Attacked(known["attacked"], *images, (shares[0], shares[1]))
    return found


def _attacked(
    observer: Observer, attack: Attack, name: str, images: ImageSet, count: int
) -> dict[str, Tensor]:
    options = str(ATTACKS[name]).encode()
    key = [b"attack", options, str(count).encode(), images.pixels[: 4 * count].numpy().tobytes()]
    return observer.kept(key, lambda: _make(observer.model, attack, images, count))


def _make(model: nn.Module, attack: Attack, images: ImageSet, count: int) -> dict[str, Tensor]:
    few = images.select(slice(None, 4 * count))
    assert few.labels is not None
    with torch.no_grad():
        predicted = torch.cat([model(x).argmax(1) for x in torch.split(few.images, 256)])
    right = few.select((predicted == few.labels).nonzero()[:count, 0])
    assert right.labels is not None
    result = attack(model, right.images, right.labels)
    works = result.success_rounded
    return {
        "attacked": (result.rounded[works] * 255).round().to(torch.uint8),
        "originals": right.pixels[works],
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
