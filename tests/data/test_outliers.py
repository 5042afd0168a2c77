"""Outliers to train on: reproducible, varied, and not taken from a test set."""

import pytest
import torch

from benchmarks.datasets import anomalous_sets, outliers
from gradood.data.image_set import ImageSet
from gradood.errors import InputError


def test_textures_are_varied_and_repeat():
    made = outliers.textures(200)
    assert torch.equal(made.pixels, outliers.textures(200).pixels)
    assert not torch.equal(made.pixels, outliers.textures(200, seed=1).pixels)
    assert made.groups.bincount().tolist() == [50] * 4
    assert len(made.pixels.flatten(1).unique(dim=0)) == 200
    assert (made.pixels.flatten(1).float().std(1) > 8).float().mean() > 0.9


def test_augmentation_stays_in_range_and_inverts_a_third():
    ones = torch.full((3000, 1, 28, 28), 255, dtype=torch.uint8)
    images = outliers.augmented(ones, torch.Generator().manual_seed(0))
    assert 0 <= images.min() and images.max() <= 1
    dark = (images.amax((1, 2, 3)) == 0).float().mean()
    assert dark == pytest.approx(1 / 3, abs=0.03)


def test_missing_fonts_are_named(tmp_path):
    with pytest.raises(InputError, match="apt-get install fonts-noto-core"):
        outliers.foreign_glyphs(root=tmp_path)


@pytest.mark.slow
def test_no_outlier_is_a_test_picture():
    try:
        glyphs = outliers.foreign_glyphs(count_per_font=5)
        tests = anomalous_sets(
            ImageSet("none", torch.zeros(9, 1, 28, 28).byte(), torch.arange(9), "", "")
        )
    except InputError as error:
        pytest.skip(str(error))
    assert len(glyphs) > 500 and len(glyphs.groups.unique()) > 100
    trained = {
        picture.numpy().tobytes() for s in (glyphs, outliers.textures()) for picture in s.pixels
    }
    for one in tests:
        if one.source != "":  # made from the blank pictures
            assert not trained & {picture.numpy().tobytes() for picture in one.pixels}
