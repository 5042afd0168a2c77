"""The models that are measured, each with its batch; random weights, evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradood.errors import InputError

CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """A model and a batch for it.

    Attributes:
        model: A key of ``BUILDERS``.
        batch: Samples.
        size: Height and width of the images in pixels.
        width: Features of a hidden layer, channels after the stem, or tokens' dimension.
        depth: Hidden layers, blocks a stage, or transformer blocks.
    """

    model: str
    batch: int
    size: int
    width: int
    depth: int

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return 1 if self.model == "mlp" else 3

    def build(self) -> tuple[nn.Module, Tensor]:
        """The model in evaluation mode and images ``[batch, channels, size, size]``; seeded."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = BUILDERS[self.model](self).eval()
            x = torch.randn(
                self.batch, self.channels, self.size, self.size, dtype=torch.float32, device="cpu"
            )
            calibrate(model, x)
            return model, x


class MultilayerPerceptron(nn.Sequential):
    """Linear layers with ReLU between them, on flattened images."""

    def __init__(self, features: int, width: int, depth: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise([features, *[width] * depth]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers, nn.Linear(width if depth else features, CLASSES))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; He et al. 2016."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.convolution2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        # A module of its own for every use: hook-based peers fail on a module called twice.
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, inputs, H, W]`` to ``[N, outputs, H / stride, W / stride]``."""
        out = self.relu1(self.norm1(self.convolution1(x)))
        out = self.norm2(self.convolution2(out))
        return self.relu2(out + self.shortcut(x))  # type: ignore[no-any-return]


class ResidualNetwork(nn.Module):
    """ResNet for small images: a 3×3 stem without pooling, then stages that halve the image."""

    def __init__(self, width: int, stages: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        layers = []
        inputs = width
        for stage in range(stages):
            for block in range(blocks):
                outputs = width << stage
                stride = 2 if stage and not block else 1
                layers.append(BasicBlock(inputs, outputs, stride))
                inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, 3, H, W]`` to logits."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention from two linear layers, which hook-based peers support."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[N, T, width]`` to tokens."""
        samples, tokens, width = x.shape
        parts = self.queries_keys_values(x).view(samples, tokens, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        out = (weights @ v).transpose(1, 2).reshape(samples, tokens, width)
        return self.projection(out)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each after a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[N, T, width]`` to tokens."""
        x = x + self.attention(self.norm1(x))
        return x + self.perceptron(self.norm2(x))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """A pre-norm transformer on 4×4 patches: fixed positions, mean instead of a class token."""

    positions: Tensor

    def __init__(self, size: int, width: int, depth: int, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.register_buffer(
            "positions",
            0.02 * torch.randn(1, (size // patch) ** 2, width, dtype=torch.float32, device="cpu"),
        )
        heads = max(1, width // 64)
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, 3, H, W]`` to logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))  # type: ignore[no-any-return]


class SeparableNetwork(nn.Module):
    """Depthwise and pointwise convolutions in turns, after MobileNet (Howard et al. 2017)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        layers = [_convolution(3, width, 3)]
        inputs = width
        later = [(factor, 1 + (i == 0)) for factor in (4, 8, 16) for i in range(depth)]
        for factor, stride in [(2, 1), *later, (16, 1)]:
            layers.append(_convolution(inputs, inputs, 3, stride, groups=inputs))
            layers.append(_convolution(inputs, factor * width, 1))
            inputs = factor * width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, 3, H, W]`` to logits."""
        return self.head(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Module:
    padding = kernel // 2
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _torchvision(name: str) -> Callable[[Workload], nn.Module]:
    def build(workload: Workload) -> nn.Module:
        model: nn.Module = getattr(import_module("torchvision.models"), name)(weights=None)
        if name.startswith("vit"):
            # It starts at zero, where every norm below the head would be zero too.
            nn.init.normal_(model.heads.head.weight, std=0.02)  # type: ignore
        return model

    return build


def calibrate(model: nn.Module, x: Tensor) -> None:
    """Give batch norms generic parameters, and statistics of these images, as if trained.

    Without, deep networks of random weights have logits in the thousands.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.75, 1.25)
            norm.bias.normal_(std=0.1)
            norm.train().momentum = 1.0
        if norms:
            model(x[:8])
        for norm in norms:
            norm.eval().momentum = 0.1


def bce(logits: Tensor) -> Tensor:
    """The loss of every method: binary cross-entropy to the label of all classes, summed."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.binary_cross_entropy_with_logits(
        logits, torch.ones_like(logits), reduction="sum"
    )


#: How each model is made from its workload.
BUILDERS: dict[str, Callable[[Workload], nn.Module]] = {
    "mlp": lambda w: MultilayerPerceptron(w.size**2, w.width, w.depth),
    "resnet18": lambda w: ResidualNetwork(w.width, 4, w.depth),
    "resnet20": lambda w: ResidualNetwork(w.width, 3, w.depth),
    "vit": lambda w: VisionTransformer(w.size, w.width, w.depth),
    "depthwise": lambda w: SeparableNetwork(w.width, w.depth),
    "resnet50": _torchvision("resnet50"),
    "vit_b_16": _torchvision("vit_b_16"),
}

_WORKLOADS = (
    Workload("mlp", batch=256, size=28, width=512, depth=2),
    Workload("resnet18", batch=32, size=32, width=64, depth=2),
    Workload("resnet20", batch=128, size=32, width=16, depth=3),
    Workload("vit", batch=32, size=32, width=192, depth=6),
    Workload("depthwise", batch=64, size=32, width=32, depth=2),
    Workload("resnet50", batch=4, size=224, width=64, depth=16),
    Workload("vit_b_16", batch=4, size=224, width=768, depth=12),
)

#: The five models of every table, and the large ones of torchvision.
STANDARD = ("mlp", "resnet18", "resnet20", "vit", "depthwise")
LARGE = ("resnet50", "vit_b_16")


def workload(model: str) -> Workload:
    """The standard workload of a model.

    Raises:
        InputError: There is none of this name.
    """
    for candidate in _WORKLOADS:
        if candidate.model == model:
            return candidate
    raise InputError(f"no model {model!r} to measure; use one of {', '.join(BUILDERS)}")
