"""What is scored: out-of-distribution and near-anomalous pictures, and their splits."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.datasets import Suite, fashion_mnist, split_by_class
from benchmarks.datasets.fashion import CLASSES, HELD_OUT
from gradood.data import (
    EMBEDDED,
    ImageSet,
    embedded_set,
    gaussian_noise,
    halve_by_group,
    inverted,
    pixel_shuffled,
    rotated,
    uniform_noise,
)

#: The half of the sets, and the attacks, that presets were chosen on; the others were then scored
#: once. Of near-anomalous classes, those of resnet8-near-0 had a part in the choice.
DEVELOPMENT = (
    *("mnist", "photos", "digits", "uniform-noise", "fashion-mnist-rotated"),
    *("FGSM 8/255", "PGD 8/255"),
)


def near_suite(seed: int, fit: int) -> tuple[ImageSet, ImageSet, dict[str, ImageSet]]:
    """Normal pictures to fit and to score without the held-out classes, and these, by name."""
    train = split_by_class(fashion_mnist("train"), HELD_OUT)[0].sample(fit, seed=seed)
    kept, held_out = split_by_class(fashion_mnist("test"), HELD_OUT)
    assert held_out.labels is not None
    near = {CLASSES[c]: held_out.select(held_out.labels == c) for c in HELD_OUT}
    return train, kept, {name: replace(one, name=name) for name, one in near.items()}


def embedded_suite(seed: int, count: int = 24) -> Suite:
    """Such splits of the pictures inside the package: a few of each, and nothing to install."""
    known = embedded_set("fashion-mnist-train").sample(10 * count, seed=seed)
    fit, normal_known = known.select(slice(None, 5 * count)), known.select(slice(5 * count, None))
    anomalous = [name for name in EMBEDDED if not name.startswith("fashion-mnist")]
    real = [embedded_set(name).sample(count, seed=seed) for name in anomalous]
    source = normal_known.sample(count, seed=seed)
    noise = (uniform_noise(count, seed=seed), gaussian_noise(count, seed=seed))
    made = (*noise, pixel_shuffled(source, seed=seed), inverted(source), rotated(source))
    halves = {one.name: halve_by_group(one, seed=seed) for one in (*real, *made)}
    return Suite(
        fit=fit,
        normal_known=normal_known,
        normal_scored=embedded_set("fashion-mnist").sample(5 * count, seed=seed),
        anomalous_known={name: half for name, (half, _) in halves.items()},
        anomalous_scored={name: half for name, (_, half) in halves.items()},
    )
