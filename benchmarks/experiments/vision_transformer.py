"""A small vision transformer for 28 x 28 grey images: patches of 4 pixels, 49 tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradood.data.networks import FASHION_MNIST_MEAN, FASHION_MNIST_STD, Normalise


class Block(nn.Module):
    """Self-attention and a two-layer network, each after a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, width]`` -> the same shape."""
        parts = self.query_key_value(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.project(mixed)
        out: Tensor = x + self.contract(F.gelu(self.expand(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """``[N, 1, 28, 28]`` in [0, 1] -> logits ``[N, classes]``; normalisation is inside."""

    def __init__(self, classes: int = 10, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.normalise = Normalise(FASHION_MNIST_MEAN, FASHION_MNIST_STD)
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features ``[N, width]``: the mean of the tokens."""
        tokens = self.patches(self.normalise(x)).flatten(2).transpose(1, 2)
        out: Tensor = self.norm(self.blocks(tokens + self.position)).mean(1)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        out: Tensor = self.linear(self.features(x))
        return out
