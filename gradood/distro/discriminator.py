"""The small network that tells normal from anomalous inputs, within bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from gradood.arguments import checked
from gradood.data.weights import load_network
from gradood.distro.ibp import upper_bound


@checked
def discriminator(width: int = 16, *, channels: int = 1, size: int = 28) -> nn.Sequential:
    """An untrained discriminator, pictures in [0, 1] -> logit d ``[N, 1]``, high = normal.

    Two strided convolutions and two linear layers: shallow, since interval bounds widen with depth.

    Args:
        width: Channels of the first convolution.
        channels: C of pictures ``[N, C, size, size]``.
        size: Height and width of them.
    """
    side = -(-size // 4)  # after two strides of two, rounded up
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * side**2, 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, 1),
    )


@checked
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


@checked
def load_discriminator(path: str | Path) -> nn.Sequential:
    """Read a discriminator that ``benchmarks/train_discriminator.py`` wrote, in eval mode.

    Its width, and the pictures that it takes, follow from the shapes of its weights.

    Raises:
        CheckpointError: The file is missing, damaged, or not one of ours.
    """

    def make(_: Mapping[str, str], weights: Mapping[str, Tensor]) -> nn.Sequential:
        width, channels = weights["0.weight"].shape[:2]
        side = math.isqrt(weights["5.weight"].shape[1] // (2 * width))
        return discriminator(width, channels=channels, size=4 * side)

    return load_network(path, make, "discriminator").requires_grad_(False)


def embedded_discriminator() -> nn.Sequential:
    """The committed discriminator for Fashion-MNIST, on the CPU, in float32 and eval mode.

    Example:
        >>> from gradood.data import embedded_images
        >>> embedded_discriminator()(embedded_images("fashion-mnist")).shape
        torch.Size([500, 1])
    """
    with as_file(files("gradood.data") / "assets" / "discriminator.safetensors") as path:
        return load_discriminator(path)
