"""Small real models whose smoothed values are known, or that are fast."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from gradood.data import embedded_classifier, embedded_images
from gradood.smoothing import noise


@pytest.fixture(autouse=True)
def drawn_seeds(request, monkeypatch):
    """Fresh seeds are the same ones whenever a test runs: bounds fail with probability alpha."""
    chance = random.Random(request.node.nodeid)
    monkeypatch.setattr(noise.secrets, "randbits", chance.getrandbits)


class HalfSpace(nn.Module):
    """Two classes on either side of a hyperplane: P(class 1) = Phi((w x - b) / (|w| sigma))."""

    def __init__(self, normal: Tensor, offset: float = 0.0) -> None:
        super().__init__()
        self.normal = nn.Parameter(normal)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        side = x.flatten(1) @ self.normal - self.offset
        return torch.stack([-side, side], 1)


@pytest.fixture
def half_space():
    """In four dimensions, the distance of x from its border being ``x[0]``."""
    return HalfSpace(torch.tensor([1.0, 0.0, 0.0, 0.0]))


def points(*distances):
    """Inputs ``[N, 4]`` at these distances from the border of ``half_space``."""
    x = torch.zeros(len(distances), 4)
    x[:, 0] = torch.tensor(distances)
    return x


@pytest.fixture(name="points")
def points_fixture():
    return points


@pytest.fixture(scope="session")
def classifier():
    """The embedded Fashion-MNIST network."""
    return embedded_classifier()


@pytest.fixture(scope="session")
def pictures():
    """Six pictures that it knows."""
    return embedded_images("fashion-mnist")[:6]


@pytest.fixture
def threads():
    """Restores the number of threads."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
