"""Denoisers by name, as the command line gives them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from gradood.errors import InputError
from gradood.scoring.models import find_device, named
from gradood.smoothing import embedded_denoiser, from_diffusers
from gradood.smoothing.patched_unet import diffusers, load_denoiser as load_trained
from gradood.smoothing.settings import Denoiser


def load_denoiser(name: str | None, device: str = "auto") -> Denoiser | None:
    """A denoiser by name.

    That is "embedded", a folder of a diffusers pipeline, a file of ``benchmarks/train_denoiser.py``
    or ``package.module:function``.
    """
    if name is None:
        return None
    denoiser = _make(name)
    return denoiser.to(find_device(device)) if isinstance(denoiser, nn.Module) else denoiser


def _make(name: str) -> Denoiser:
    if name == "embedded":
        return embedded_denoiser()
    if Path(name).is_dir():
        return _of_diffusers(name)
    if Path(name).is_file():
        return load_trained(name)
    expected = 'module:function, "embedded", a file or a folder of diffusers'
    found = named("--denoiser", name, expected)
    if not callable(found):
        raise InputError(f"--denoiser {name} is {type(found).__name__}, expected a function")
    denoiser: Denoiser = found
    return denoiser


def _of_diffusers(folder: str) -> Denoiser:
    package = diffusers()
    try:
        unet = package.UNet2DModel.from_pretrained(folder, subfolder="unet")
        scheduler = package.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    except (OSError, ValueError) as error:
        raise InputError(
            f"--denoiser {folder} holds no diffusers pipeline of an unconditional UNet2DModel "
            f"with its scheduler ({error})"
        ) from error
    return from_diffusers(unet.eval().requires_grad_(False), scheduler)
