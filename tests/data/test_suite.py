import importlib.util
from pathlib import Path

import pytest
import torch

from benchmarks.datasets import evaluation_suite
from benchmarks.datasets.letters import DEBIAN_FONTS

pytestmark = pytest.mark.skipif(
    any(
        importlib.util.find_spec(package) is None
        for package in ("mlxtend", "skimage", "animal_mnist", "PIL")
    )
    or not all(folder.is_dir() for folder in DEBIAN_FONTS.values()),
    reason="needs gradood[data], animal-mnist and the Debian fonts of benchmarks.datasets.letters",
)


def rows(pixels: torch.Tensor) -> set[bytes]:
    return {picture.numpy().tobytes() for picture in pixels}


def test_no_picture_and_no_group_is_on_both_sides(debian_fashion_mnist: Path) -> None:
    suite = evaluation_suite(debian_fashion_mnist, count=400, seed=1)
    assert (len(suite.fit), len(suite.normal_known), len(suite.normal_scored)) == (5000,) * 3
    normal = [rows(part.pixels) for part in (suite.fit, suite.normal_known, suite.normal_scored)]
    # Fashion-MNIST itself repeats a handful of pictures.
    assert len(normal[0] & normal[2]) + len(normal[1] & normal[2]) <= 5
    assert len(suite.anomalous_scored) == len(suite.anomalous_known) == 10
    for name, scored in suite.anomalous_scored.items():
        known = suite.anomalous_known[name]
        assert not rows(known.pixels) & rows(scored.pixels), name
        assert not set(known.groups.tolist()) & set(scored.groups.tolist()), name
        assert 0 < len(scored) and len(known) + len(scored) == 400


@pytest.mark.slow
def test_the_suite_depends_on_its_seed_alone(debian_fashion_mnist: Path) -> None:
    first, again, other = (
        evaluation_suite(debian_fashion_mnist, count=60, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.fit.pixels, again.fit.pixels)
    assert not torch.equal(first.fit.pixels, other.fit.pixels)
    for name, scored in first.anomalous_scored.items():
        assert torch.equal(scored.pixels, again.anomalous_scored[name].pixels)
        assert not torch.equal(scored.pixels, other.anomalous_scored[name].pixels)
