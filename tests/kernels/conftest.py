"""Hostile surroundings for every kernel: unwritten memory holds NaN, programs run in any order."""

from collections.abc import Iterator

import pytest
import torch

from gradood.kernels.launch import INTERPRETING


@pytest.fixture(autouse=True)
def hostile() -> Iterator[None]:
    """Fill new memory with NaN, and in the interpreter shuffle the programs of every launch."""
    torch.use_deterministic_algorithms(True)
    try:
        if INTERPRETING:
            from gradood.kernels.interpreter import shuffled

            with shuffled(seed=7):
                yield
        else:
            yield
    finally:
        torch.use_deterministic_algorithms(False)
