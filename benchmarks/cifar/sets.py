"""Which picture sets are scored, and which of them presets were chosen on."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.datasets import picture_set
from gradood.data import ImageSet
from gradood.errors import InputError

NEAR = ("cifar100-test", "tiny-imagenet")
FAR = ("svhn-test", "textures", "places", "scenes", "gtsrb", "mnist-test")
#: With ResNet-20; the other sets, and ResNet-56, were looked at once, at the end.
DEVELOPMENT = ("svhn-test", "textures", "tiny-imagenet")
#: Normal pictures that went through what the anomalous sets did.
CONTROL = "control: normal, JPEG"


def anomalous_sets(data: Path, count: int) -> dict[str, ImageSet]:
    """Those that are in the folder, at most so many pictures of each, drawn at random."""
    found = {}
    for name in (*NEAR, *FAR):
        try:
            found[name] = picture_set(name, data).sample(count)
        except InputError as error:
            if (data / name).exists() or (data / f"{name}.zip").exists():
                raise
            absent = str(error)
    if not found:
        raise InputError(absent)
    return found


def control(normal: ImageSet) -> ImageSet:
    """Normal pictures doubled in size, saved as JPEG of quality 75 or 90, and made small again."""
    pixels = [
        _treated(one, 75 if number % 2 else 90)
        for number, one in enumerate(normal.pixels.permute(0, 2, 3, 1).numpy())
    ]
    return replace(normal, name=CONTROL, pixels=torch.from_numpy(np.stack(pixels)))


def _treated(pixels: np.ndarray, quality: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    file = io.BytesIO()
    Image.fromarray(pixels).resize((2 * width, 2 * height), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=quality
    )
    small = Image.open(file).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small).transpose(2, 0, 1).copy()
