"""The evaluation suite on Fashion-MNIST: which pictures fit, which train, which are scored."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.datasets.fashion import fashion_mnist
from benchmarks.datasets.letters import glyphs
from benchmarks.datasets.packaged import animals, digits, mnist
from benchmarks.datasets.photos import photo_patches
from gradood.data.image_set import ImageSet, halve_by_group
from gradood.data.made import gaussian_noise, inverted, pixel_shuffled, rotated, uniform_noise


@dataclass(frozen=True)
class Suite:
    """Disjoint sets for one run; everything is reported on ``scored`` sets only.

    Attributes:
        fit: Normal training pictures, for detectors that need no anomalies.
        normal_known: Normal pictures that a supervised detector may train on: ``test[:5000]``.
        normal_scored: Normal pictures for evaluation: ``test[5000:]``.
        anomalous_known: By name, the half that a supervised detector may train on.
        anomalous_scored: By name, the half for evaluation; no group is in both.
    """

    fit: ImageSet
    normal_known: ImageSet
    normal_scored: ImageSet
    anomalous_known: dict[str, ImageSet]
    anomalous_scored: dict[str, ImageSet]


def anomalous_sets(
    normal: ImageSet,
    count: int = 2000,
    seed: int = 0,
    fonts: str | Path | None = None,
) -> tuple[ImageSet, ...]:
    """The ten anomalous sets: five of real pictures, two of noise, three distorted from ``normal``.

    Args:
        normal: Where the distorted pictures come from.
        count: At most so many pictures a set, drawn at random.
        seed: For every draw.
        fonts: Folder of fonts for the glyphs, see ``glyphs``.

    Raises:
        InputError: A package or the fonts are missing.
    """
    sources = [normal.sample(count, seed=seed + draw) for draw in range(3)]
    real = (mnist(), animals(), digits(), glyphs(fonts), photo_patches())
    return (
        *(one.sample(count, seed=seed) for one in real),
        uniform_noise(count, seed=seed),
        gaussian_noise(count, seed=seed),
        pixel_shuffled(sources[0], seed=seed),
        inverted(sources[1]),
        rotated(sources[2]),
    )


def evaluation_suite(
    root: str | Path | None = None,
    fonts: str | Path | None = None,
    count: int = 2000,
    seed: int = 0,
) -> Suite:
    """Everything that one run of the benchmarks needs, split so that nothing leaks.

    The distorted sets are made from all of the normal test pictures and halved like the others.

    Args:
        root: Folder with the Fashion-MNIST files, see ``fashion_mnist``.
        fonts: Folder of fonts for the glyphs, see ``glyphs``.
        count: At most so many pictures an anomalous set, before halving.
        seed: For every draw and split.

    Raises:
        InputError: A package, a file or the fonts are missing.
    """
    test = fashion_mnist("test", root)
    halves = {
        one.name: halve_by_group(one, seed=seed) for one in anomalous_sets(test, count, seed, fonts)
    }
    return Suite(
        fit=fashion_mnist("train", root).sample(5000, seed=seed),
        normal_known=test.select(slice(None, 5000)),
        normal_scored=test.select(slice(5000, None)),
        anomalous_known={name: known for name, (known, _) in halves.items()},
        anomalous_scored={name: scored for name, (_, scored) in halves.items()},
    )
