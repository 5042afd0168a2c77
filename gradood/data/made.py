"""Anomalous sets that are computed: noise, and distorted normal pictures."""

from dataclasses import replace

import torch
from torch import Tensor

from gradood.arguments import at_least, checked
from gradood.data.image_set import ImageSet
from gradood.errors import InputError


def _noise(name: str, pixels: Tensor) -> ImageSet:
    return ImageSet(
        name,
        pixels,
        torch.arange(len(pixels), dtype=torch.int64, device="cpu"),
        "CC0-1.0",
        "computed",
    )


@checked
def uniform_noise(count: int = 2000, *, seed: int = 0) -> ImageSet:
    """Independent pixels, uniform on 0 … 255."""
    generator = torch.Generator().manual_seed(seed)
    size = (at_least("count", count, 0), 1, 28, 28)
    return _noise(
        "uniform-noise",
        torch.randint(256, size, generator=generator, dtype=torch.uint8, device="cpu"),
    )


@checked
def gaussian_noise(count: int = 2000, *, seed: int = 0) -> ImageSet:
    """Independent pixels, normal with mean 127.5 and standard deviation 64, clipped to 0 … 255."""
    generator = torch.Generator().manual_seed(seed)
    values = 127.5 + 64 * torch.randn(
        at_least("count", count, 0),
        1,
        28,
        28,
        generator=generator,
        dtype=torch.float32,
        device="cpu",
    )
    return _noise("gaussian-noise", values.round().clamp(0, 255).byte())


@checked
def pixel_shuffled(normal: ImageSet, *, seed: int = 0) -> ImageSet:
    """Every picture with its pixels in a random order of its own: same histogram, no shape."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(
        len(normal), 28 * 28, generator=generator, dtype=torch.float32, device="cpu"
    ).argsort(1)
    pixels = normal.pixels.flatten(1).gather(1, order).view_as(normal.pixels)
    return replace(normal, name=f"{normal.name}-shuffled", pixels=pixels)


@checked
def inverted(normal: ImageSet) -> ImageSet:
    """The negatives: ``255 - pixel``."""
    return replace(normal, name=f"{normal.name}-inverted", pixels=255 - normal.pixels)


@checked
def rotated(normal: ImageSet, *, degrees: int = 90) -> ImageSet:
    """Every picture turned counter-clockwise by a multiple of 90 degrees.

    Raises:
        InputError: ``degrees`` is not a multiple of 90, or leaves the pictures as they are.
    """
    if degrees % 90 or not degrees % 360:
        raise InputError(f"degrees must be 90, 180 or 270 (modulo 360), got {degrees}.")
    pixels = normal.pixels.rot90(degrees // 90, (2, 3)).contiguous()
    return replace(normal, name=f"{normal.name}-rotated", pixels=pixels)
