"""A module with a fixed linear head, for the suites of modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.gradients.oracle import randomise
from tests.suites.entry import Case

SAMPLES = 3

#: A module and a batch, samples first.
Made = tuple[nn.Module, Tensor]


class Headed(nn.Module):
    """A module, the first of its results, and a fixed linear head."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.module = module
        with torch.no_grad():
            width = self.features(x).shape[1]
        generator = torch.Generator().manual_seed(0)
        head = torch.randn(width, 3, generator=generator, dtype=torch.float64)
        self.register_buffer("head", head / max(width, 1) ** 0.5)

    def features(self, x: Tensor) -> Tensor:
        out = self.module(x)
        return (out if isinstance(out, Tensor) else out[0]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x) @ self.head


class Transposed(nn.Module):
    """A module that has the samples second."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x.transpose(0, 1))
        return (out if isinstance(out, Tensor) else out[0]).transpose(0, 1)


class Of(nn.Module):
    """A function of modules and of the batch."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def case(name: str, module: nn.Module, x: Tensor) -> Case:
    randomise(module.double()).eval()
    x = x.double() if x.is_floating_point() else x
    return Case(name, Headed(module, x).eval(), x)
