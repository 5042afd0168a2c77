"""What a layer made of a sample, in a few numbers: its norm, and mean and power by channel."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

#: Channels of a layer of which mean and power are kept, evenly spread: wide layers would outgrow
#: memory, and half of 64 channels tell as much.
MOST_CHANNELS = 64
#: With fewer normalisation layers than these, every operator that uses a parameter is measured.
FEWEST_LAYERS = 3


class Layer(NamedTuple):
    """Measurements of one layer's output for N samples."""

    name: str
    squares: Tensor
    """``Σ a²`` over positions, of all channels, ``[N, D]``."""
    mean: Tensor
    """Mean over positions of every ``step``-th channel, ``[N, C]``."""
    step: int
    positions: int


class Activations(NamedTuple):
    """All layers of one pass: norms ``[N, A]``, channels ``[N, 2, Σ C]``, A names and counts C."""

    norms: Tensor | None = None
    channels: Tensor | None = None
    names: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    @staticmethod
    def of(layers: Sequence[Layer]) -> Activations:
        """Those of the layers, in their order."""
        if not layers:
            return Activations()
        # All layers at once: there are many, and a call of an operator takes its time.
        power = torch.cat([one.squares[:, :: one.step] / one.positions for one in layers], 1)
        return Activations(
            torch.stack([one.squares.sum(1) for one in layers], 1),
            torch.stack([torch.cat([one.mean for one in layers], 1), power], 1),
            tuple(one.name for one in layers),
            tuple(one.mean.shape[1] for one in layers),
        )


def measured_layer(name: str, out: Tensor, channel: int) -> Layer:
    """Reads ``out`` ``[N, …]`` twice, whatever its memory format; ``channel`` is counted back."""
    dtype = torch.promote_types(out.dtype, torch.float32)
    channel = out.dim() + channel
    if channel < 1:  # one number a sample
        out, channel = out.reshape(len(out), -1), 1
    places = tuple(place for place in range(1, out.dim()) if place != channel)
    step = -(-out.shape[channel] // MOST_CHANNELS)
    kept = out[(slice(None),) * channel + (slice(None, None, step),)]
    mean = kept.mean(places, dtype=dtype) if places else kept.to(dtype)
    squares = _sums_of_squares(out, places, dtype)
    return Layer(name, squares, mean, step, max(1, prod(out.shape[place] for place in places)))


def _sums_of_squares(out: Tensor, places: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not places:
        return out.to(dtype).square()
    if out.is_contiguous():
        norms: Tensor = torch.linalg.vector_norm(out, dim=places, dtype=dtype)
        return norms.square()
    return out.to(dtype).square().sum(places)  # ten times as fast with the channels last


def measured_positions(normalising: Collection[int], every: Collection[int]) -> frozenset[int]:
    """The operators to measure: those that normalise, if there are any: their scales agree."""
    return frozenset(normalising if len(normalising) >= FEWEST_LAYERS else every)
