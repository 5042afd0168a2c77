"""What the denoiser and the discriminator learn from: a table of data sets, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cifar.network import load_network
from benchmarks.datasets import fashion_mnist, picture_set
from benchmarks.datasets.outliers import augmented, foreign_glyphs, textures
from gradood.data import ImageSet, embedded_classifier
from gradood.errors import InputError

Vary = Callable[[Tensor, torch.Generator], Tensor]


class TrainingSet(NamedTuple):
    """Normal pictures, outliers that are scored nowhere, and what is trained on them.

    Attributes:
        pixels: Uint8 ``[N, C, H, W]``.
        labels: ``[N]``.
        outliers: Makes uint8 ``[M, C, H, W]``; only what needs outliers pays for them.
        classifier: Whose opinion a denoised picture should keep, in eval mode, without gradients.
        vary: Pixels and a generator -> pictures in [0, 1], at random mirrored, shifted …
        vary_outliers: The same of outliers.
        unet: Configuration of the denoiser, see ``PatchedUNet``.
        width: Of the discriminator.
        sigmas, rate: Noise levels in [0, 1] pixels and learning rate of the denoiser's first part.
        tuned_sigmas, tuned_rate, tuned_batch: Those of the second, and its pictures a step.
        stability: Weight of the classifier's change of mind in it.
    """

    pixels: Tensor
    labels: Tensor
    outliers: Callable[[], Tensor]
    classifier: Callable[[], nn.Module]
    vary: Vary
    vary_outliers: Vary
    unet: dict[str, Any]
    width: int
    sigmas: tuple[float, float]
    rate: float
    tuned_sigmas: tuple[float, float]
    tuned_rate: float
    tuned_batch: int
    stability: float


def unet(size: int, channels: int, widths: tuple[int, ...]) -> dict[str, Any]:
    """Of a ``UNet2DModel`` for 2 x 2 patches of pictures of ``size`` x ``size``."""
    return {
        "sample_size": size // 2,
        "in_channels": 4 * channels,
        "out_channels": 4 * channels,
        "block_out_channels": list(widths),
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D"] * len(widths),
        "up_block_types": ["UpBlock2D"] * len(widths),
        "add_attention": False,
        "norm_num_groups": 8,
    }


def fashion(root: Path | None, seed: int) -> TrainingSet:
    """Fashion-MNIST and the embedded classifier; outliers are letters and formulas."""
    normal = fashion_mnist("train", root)
    assert normal.labels is not None
    return TrainingSet(
        normal.pixels,
        normal.labels,
        lambda: torch.cat([foreign_glyphs(seed=seed).pixels, textures(seed=seed).pixels]),
        lambda: embedded_classifier().requires_grad_(False),
        vary=lambda pixels, _: pixels / 255,
        vary_outliers=augmented,
        unet=unet(28, 1, (24, 56)),
        width=16,
        sigmas=(0.08, 1.3),  # a little more than smoothing needs
        rate=2e-3,
        tuned_sigmas=(0.02, 1.3),
        tuned_rate=4e-4,
        tuned_batch=64,
        stability=0.3,
    )


def cifar10(root: Path | None, seed: int) -> TrainingSet:
    """CIFAR-10 and the public ResNet-20; outliers are Tiny ImageNet and half of the textures."""
    del seed
    if root is None:
        raise InputError("cifar10 has to come from a folder of picture sets: give --data FOLDER")
    normal = picture_set("cifar10-train", root)
    assert normal.labels is not None

    def outliers() -> Tensor:
        near, far = (picture_set(name, root) for name in ("tiny-imagenet", "textures"))
        return torch.cat([near.pixels, halves(far)[0].pixels])

    return TrainingSet(
        normal.pixels,
        normal.labels,
        outliers,
        lambda: load_network(root / "weights/cifar10-resnet20.safetensors").requires_grad_(False),
        vary=shifted,
        vary_outliers=shifted,  # as normal pictures: else its traces would tell them apart
        unet=unet(32, 3, (32, 64)),
        width=32,
        sigmas=(0.04, 0.6),
        rate=1.5e-3,
        tuned_sigmas=(0.02, 0.3),
        tuned_rate=1e-3,
        tuned_batch=32,  # short training needs steps more than pictures
        stability=0.03,  # with 0.3 the error doubles, and accuracy falls
    )


def halves(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The half that may be trained on, and the half that is scored, at random."""
    shuffled = images.sample(len(images))
    middle = len(images) // 2
    return shuffled.select(slice(0, middle)), shuffled.select(slice(middle, None))


def shifted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored at random and moved by up to two pixels each way, what is missing reflected."""
    draw = torch.rand(3, len(pixels), generator=generator, dtype=torch.float32, device="cpu")
    images = F.pad(pixels.float() / 255, (2, 2, 2, 2), mode="reflect")
    images = torch.where(draw[0].view(-1, 1, 1, 1) < 0.5, images, images.flip(3))
    height, width = pixels.shape[2:]
    corners = (5 * draw[1:]).long().T.tolist()
    return torch.stack(
        [one[:, y : y + height, x : x + width] for one, (y, x) in zip(images, corners, strict=True)]
    )


SETS: dict[str, Callable[[Path | None, int], TrainingSet]] = {
    "fashion-mnist": fashion,
    "cifar10": cifar10,
}


def training_set(name: str, root: Path | None, seed: int) -> TrainingSet:
    """By name.

    Raises:
        InputError: There is no such set, or it is not in the folder.
    """
    if name not in SETS:
        raise InputError(f"no training set {name!r}; expected one of {', '.join(SETS)}")
    return SETS[name](root, seed)
