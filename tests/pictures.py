"""Folders of the pictures inside the package, for what reads files; and of sets outside it."""

import os

import pytest
from PIL import Image

from gradood.data import embedded_images

needs_data = pytest.mark.skipif(
    "GRADOOD_DATA" not in os.environ, reason="GRADOOD_DATA names no folder of sets"
)


def pixels(name, count):
    """The first pictures of an embedded set: uint8 ``[N, H, W]``."""
    return (embedded_images(name)[:count, 0] * 255).round().byte().numpy()


def write_pictures(folder, name, count):
    """The first pictures of an embedded set as 00000.png and so on, in a new folder."""
    folder.mkdir()
    for i, picture in enumerate(pixels(name, count)):
        Image.fromarray(picture).save(folder / f"{i:05}.png")
    return folder
