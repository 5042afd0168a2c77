"""Patches of photographs and textures, from the pictures that scikit-image ships."""

import numpy as np
import numpy.typing as npt

from benchmarks.datasets.building import from_array, package_file
from gradood.data.image_set import ImageSet, without_duplicates
from gradood.data.optional import require

PICTURES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
"""The pictures whose documentation states CC0, public domain or no known restrictions."""

SHORT_SIDE = 336
"""Pictures are scaled to 12 patches along the shorter side, so that a patch shows structure."""

FLAT = 8.0
"""A patch whose pixels have a standard deviation of at most this (of 255) shows nothing."""


def _patches(name: str) -> npt.NDArray[np.uint8]:
    """All 28 x 28 tiles of one picture in grey, ``[N, 28, 28]``."""
    image_module = require("PIL.Image")
    with image_module.open(package_file("skimage", f"data/{name}")) as picture:
        grey = picture.convert("L")
    scale = SHORT_SIDE / min(grey.size)
    size = [round(side * scale) for side in grey.size]
    pixels = np.asarray(grey.resize(size, image_module.Resampling.BILINEAR), dtype=np.uint8)
    rows, columns = pixels.shape[0] // 28, pixels.shape[1] // 28
    grid = pixels[: rows * 28, : columns * 28].reshape(rows, 28, columns, 28)
    tiles: npt.NDArray[np.uint8] = grid.swapaxes(1, 2).reshape(-1, 28, 28)
    return tiles


def photo_patches() -> ImageSet:
    """Tiles of 14 photographs and textures; the groups are the source pictures.

    Near-flat tiles (standard deviation of at most ``FLAT``) and exact duplicates are dropped.

    Raises:
        InputError: scikit-image or pillow is not installed.
    """
    tiles, groups = [], []
    for group, name in enumerate(PICTURES):
        kept = [tile for tile in _patches(name) if tile.std() > FLAT]
        tiles.extend(kept)
        groups.extend([group] * len(kept))
    return without_duplicates(
        from_array(
            "photos",
            np.stack(tiles),
            licence="CC0-1.0, public domain or no known restrictions, by picture",
            source="pictures of scikit-image (skimage/data)",
            groups=groups,
        )
    )
