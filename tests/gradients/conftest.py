"""A small convolutional network and a batch for it."""

import pytest
import torch
from torch import nn

from tests.gradients.oracle import (
    randomise,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, bias=False)]
    return randomise(nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))).eval()


@pytest.fixture
def x():
    return torch.randn(6, 3, 7, 7, generator=torch.Generator().manual_seed(1))
