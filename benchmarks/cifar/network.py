"""ResNet-20, -32, -56 … for CIFAR-10, with the names of akamaster/pytorch_resnet_cifar10."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions; the shortcut keeps every ``stride``-th pixel and adds channels."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride, self.added = stride, (channels_out - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` -> ``[N, C_out, H / stride, W / stride]``."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *2 * (self.added,)))
        return F.relu(residual + x)


class CifarResNet(nn.Module):
    """``[N, 3, 32, 32]`` in [0, 1] -> logits ``[N, classes]``; normalisation is inside.

    Three stages of ``(depth - 2) / 6`` blocks with 16, 32 and 64 channels. Source: He et al., "Deep
    Residual Learning for Image Recognition", 2015, section 4.2, with shortcuts of option A.
    """

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, classes)

    def _stage(self, channels_in: int, channels_out: int, stride: int, blocks: int) -> nn.Module:
        first = BasicBlock(channels_in, channels_out, stride)
        rest = (BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def maps(self, x: Tensor) -> Tensor:
        """Feature maps ``[N, 64, 8, 8]`` before they are pooled."""
        x = F.relu(self.bn1(self.conv1((x - self.mean) / self.std)))
        out: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return out

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features ``[N, 64]``."""
        return self.maps(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        out: Tensor = self.linear(self.features(x))
        return out


def load_network(path: Path) -> CifarResNet:
    """A network from a file of weights; its depth follows from their names."""
    state = load_file(path)
    blocks = len({name.split(".")[1] for name in state if name.startswith("layer1.")})
    network = CifarResNet(6 * blocks + 2, len(state["linear.bias"]))
    network.load_state_dict(state)
    return network.eval()
