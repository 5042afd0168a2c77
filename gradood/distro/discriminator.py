"""The small network that tells normal from anomalous inputs, within bounds."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from gradood.distro.ibp import upper_bound
from gradood.errors import CheckpointError


def discriminator(width: int = 16) -> nn.Sequential:
    """An untrained discriminator ``[N, 1, 28, 28]`` in [0, 1] -> logit d ``[N, 1]``, high = normal.

    Two strided convolutions and two linear layers: shallow, since interval bounds widen with depth.
    """
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 49, 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, 1),
    )


def discriminator_loss(
    network: nn.Module, normal: Tensor, outliers: Tensor, epsilon: float
) -> Tensor:
    r"""Mean of ``-log s(d(x))`` over normal inputs, and of ``-log s(-dbar(x))`` over outliers.

    s is the sigmoid, dbar the upper bound of d within ``epsilon`` in l-infinity: an outlier has to
    look anomalous wherever it moves (Meinke, Bitterwolf, Hein, "Provably robust detection of
    out-of-distribution data (almost) for free", 2022, arXiv 2106.04260).
    """
    return (
        F.softplus(-network(normal)).mean()
        + F.softplus(upper_bound(network, outliers, epsilon=epsilon)).mean()
    )


def load_discriminator(path: str | Path, *, width: int = 16) -> nn.Sequential:
    """Read a discriminator that ``benchmarks/train_discriminator.py`` wrote, in eval mode.

    Raises:
        CheckpointError: The file is missing, damaged, or not one of ours.
    """
    with torch.device("meta"):  # no random weights, nor anybody's default dtype
        network = discriminator(width)
    try:
        network.load_state_dict(load_file(path), assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no discriminator of this package ({error}). Expected a file written by "
            "benchmarks/train_discriminator.py"
        ) from error
    return network.eval().requires_grad_(False)


def embedded_discriminator() -> nn.Sequential:
    """The committed discriminator for Fashion-MNIST, on the CPU, in float32 and eval mode.

    Example:
        >>> from gradood.data import embedded_images
        >>> embedded_discriminator()(embedded_images("fashion-mnist")).shape
        torch.Size([500, 1])
    """
    with as_file(files("gradood.data") / "assets" / "discriminator.safetensors") as path:
        return load_discriminator(path)
