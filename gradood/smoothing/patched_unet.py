"""The small diffusion model for 28 x 28 grey images, and the file that it is kept in."""

import json
from collections.abc import Mapping
from importlib.resources import as_file
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradood.data.embedded import ASSETS
from gradood.data.optional import require
from gradood.data.weights import load_network
from gradood.smoothing.denoisers import EpsDenoiser, from_diffusers


class PatchedUNet(nn.Module):
    """A diffusers ``UNet2DModel`` on 2 x 2 patches: a quarter of the pixels, four channels.

    ``pixel_shuffle(unet(pixel_unshuffle(x), t))``. Independent noise stays independent when pixels
    change places, so a diffusion of the patches is one of the picture, at a fifth of the cost.

    Args:
        config: Keyword arguments of ``diffusers.UNet2DModel``.

    Raises:
        InputError: Diffusers is not installed.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.unet: nn.Module = diffusers().UNet2DModel(**config)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """``[N, 1, 2 H, 2 W]`` and steps ``[N]`` -> the same shape as x."""
        patches = self.unet(F.pixel_unshuffle(x, 2), timestep).sample
        return F.pixel_shuffle(patches, 2)


def load_denoiser(path: str | Path) -> EpsDenoiser:
    """Read a denoiser that ``benchmarks/train_denoiser.py`` wrote.

    Args:
        path: A safetensors file whose metadata holds ``unet`` and ``scheduler``, the configurations
            of a diffusers ``UNet2DModel`` and ``DDPMScheduler``, as JSON.

    Returns:
        The denoiser on the CPU, in float32 and in eval mode, without gradients.

    Raises:
        InputError: Diffusers is not installed.
        CheckpointError: The file is missing, damaged, or not one of ours.
    """
    package, scheduler = diffusers(), None

    def make(metadata: Mapping[str, str], _: Mapping[str, Tensor]) -> PatchedUNet:
        nonlocal scheduler
        with torch.device("cpu"):  # a schedule has numbers from the start
            scheduler = package.DDPMScheduler(**json.loads(metadata["scheduler"]))
        return PatchedUNet(json.loads(metadata["unet"]))

    unet = load_network(path, make, "denoiser")
    return from_diffusers(unet, scheduler).eval().requires_grad_(False)


def embedded_denoiser() -> EpsDenoiser:
    """The committed diffusion denoiser for 28 x 28 grey images, on the CPU, in float32.

    It goes before the embedded classifier: ``Smoothing(sigma=0.25, denoiser=embedded_denoiser())``,
    for sigma from .1 to 1.2. How it was trained stands in the metadata of
    ``assets/denoiser.safetensors``. Each call builds a new network, so changing one is safe.

    Raises:
        InputError: The package diffusers is not installed: ``pip install gradood[diffusion]``.

    Example:
        >>> from gradood.data import embedded_images
        >>> from gradood.smoothing import embedded_denoiser
        >>> images = embedded_images("fashion-mnist")[:4]
        >>> noisy = images + 0.25 * torch.randn_like(images)
        >>> embedded_denoiser()(noisy, 0.25).shape
        torch.Size([4, 1, 28, 28])
    """
    with as_file(ASSETS / "denoiser.safetensors") as path:
        return load_denoiser(path)


def diffusers() -> Any:
    """The package.

    Raises:
        InputError: It is not installed.
    """
    return require("diffusers", "diffusion", "The diffusion denoiser")
