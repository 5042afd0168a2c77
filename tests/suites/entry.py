"""What the suites have in common: entries of somebody's list, each with a few cases."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Case(NamedTuple):
    """A float64 classifier in evaluation mode, and a batch for it."""

    name: str
    model: nn.Module
    x: Tensor


class Entry(NamedTuple):
    """One entry of a list; ``cases`` builds its classifiers, one after the other.

    With a limit of ``seconds`` it runs in a process of its own.
    """

    suite: str
    name: str
    cases: Callable[[], Iterator[Case]]
    seconds: int | None = None

    @property
    def id(self) -> str:
        """For people."""
        return f"{self.suite}/{self.name}"


def seed(number: int) -> None:
    """Seed every generator that makes inputs."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def spread(count: int, most: int) -> list[int]:
    """So many of a list's places, evenly, the first among them."""
    return sorted({i * count // most for i in range(most)} if count > most else range(count))
