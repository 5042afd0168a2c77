"""Small residual networks for 28 x 28 grey images: the classifiers that the examples score."""

from pathlib import Path

import torch
from torch import Tensor, nn

from gradood.arguments import at_least, checked
from gradood.data.weights import load_network
from gradood.errors import InputError

FASHION_MNIST_MEAN = 0.2860
FASHION_MNIST_STD = 0.3530


class Normalise(nn.Module):
    """``(x - mean) / std``, both constants as buffers, so that they travel with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32, device="cpu"))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 1, H, W]`` in [0, 1] -> the same shape, about zero mean and unit variance."""
        return (x - self.mean) / self.std


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: ``relu(F(x) + shortcut(x))``."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` -> ``[N, C_out, H / stride, W / stride]``."""
        residual = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        out: Tensor = self.relu2(residual + self.shortcut(x))
        return out


@checked
class ResNet(nn.Module):
    """ResNet-8, -14, -20 … for ``[N, 1, 28, 28]`` grey images in [0, 1]; normalisation is inside.

    Three stages of ``(depth - 2) / 6`` residual blocks with ``width``, ``2 width`` and ``4 width``
    channels at 28, 14 and 7 pixels, then average pooling and one linear layer. Source: He et al.,
    "Deep Residual Learning for Image Recognition", 2015, section 4.2 (there for 32 x 32 pictures),
    with projection shortcuts.

    Args:
        depth: Number of weighted layers, ``6 n + 2``: 8, 14, 20, …
        width: Channels of the first stage.
        classes: Number of logits.
        mean: Mean pixel value in [0, 1], subtracted from the input.
        std: Standard deviation of the pixels, divided by.

    Raises:
        InputError: ``depth`` is not ``6 n + 2``, or a size is not positive.
    """

    def __init__(
        self,
        depth: int = 8,
        *,
        width: int = 16,
        classes: int = 10,
        mean: float = FASHION_MNIST_MEAN,
        std: float = FASHION_MNIST_STD,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise InputError(f"depth must be 6 n + 2 (8, 14, 20, …), got {depth}.")
        at_least("width", width)
        at_least("classes", classes)
        self.depth, self.width, self.classes = depth, width, classes
        self.normalise = Normalise(mean, std)
        self.conv = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stage1 = self._stage(width, width, stride=1)
        self.stage2 = self._stage(width, 2 * width, stride=2)
        self.stage3 = self._stage(2 * width, 4 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(4 * width, classes)

    def _stage(self, channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
        blocks = [ResidualBlock(channels_in, channels_out, stride)]
        while len(blocks) < (self.depth - 2) // 6:
            blocks.append(ResidualBlock(channels_out, channels_out, 1))
        return nn.Sequential(*blocks)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features, ``[N, 1, 28, 28]`` in [0, 1] -> ``[N, 4 width]``."""
        x = self.relu(self.norm(self.conv(self.normalise(x))))
        x = self.stage3(self.stage2(self.stage1(x)))
        out: Tensor = self.flatten(self.pool(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits, ``[N, 1, 28, 28]`` in [0, 1] -> ``[N, classes]``."""
        out: Tensor = self.linear(self.features(x))
        return out


@checked
def load_classifier(path: str | Path) -> ResNet:
    """Read a classifier that ``benchmarks/train_classifier.py`` wrote.

    Args:
        path: A safetensors file whose metadata states ``depth``, ``width`` and ``classes``.

    Returns:
        The network on the CPU, in float32 and in eval mode.

    Raises:
        CheckpointError: The file is missing, damaged, or not one of ours.
    """
    keys = ("depth", "width", "classes")
    return load_network(path, lambda m, _: ResNet(**{k: int(m[k]) for k in keys}), "classifier")
