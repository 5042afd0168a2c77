"""What a measure of novelty is: vectors of normal inputs -> how unlike them another vector is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

#: What a measure learned: tensors by name.
Learned = dict[str, Tensor]


class Novelty(NamedTuple):
    """One way to compare vectors with normal ones of the same predicted class.

    Attributes:
        learned: Names of the tensors that ``fit`` returns and ``score`` reads.
        fit: Normal vectors ``[N, d]``, float64, and their predicted classes ``[N]`` -> tensors.
        score: Vectors ``[M, d]``, their predicted classes ``[M]`` and these tensors -> ``[M]``,
            higher = more novel, in a unit of its own.
    """

    learned: tuple[str, ...]
    fit: Callable[[Tensor, Tensor], Learned]
    score: Callable[[Tensor, Tensor, Learned], Tensor]
