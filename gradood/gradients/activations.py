"""What a layer made of a sample, in a few numbers: its norm, and mean and power by channel."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Channels of a layer of which mean and power are kept, evenly spread: wide layers would outgrow
#: memory, and half of 64 channels tell as much.
MOST_CHANNELS = 64
#: With fewer normalisation layers than these, every operator that uses a parameter is measured.
FEWEST_LAYERS = 3


class Layer(NamedTuple):
    """One layer's output for N samples."""

    name: str
    norm: Tensor
    """``Σ a²``, ``[N]``."""
    channels: Tensor
    """Mean and mean square over positions of C channels, ``[N, 2, C]``."""


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
        names, norms, channels = zip(*layers, strict=True)
        counts = tuple(one.shape[2] for one in channels)
        return Activations(torch.stack(norms, 1), torch.cat(channels, 2), names, counts)


def measured_layer(name: str, out: Tensor, channel: int) -> Layer:
    """Reads ``out`` ``[N, …]`` twice, whatever its memory format; ``channel`` is counted back."""
    dtype = torch.promote_types(out.dtype, torch.float32)
    channel = out.dim() + channel
    if channel < 1:  # one number a sample
        out, channel = out.reshape(len(out), -1), 1
    places = tuple(place for place in range(1, out.dim()) if place != channel)
    step = -(-out.shape[channel] // MOST_CHANNELS)
    kept = out[(slice(None),) * channel + (slice(None, None, step),)]
    if places:
        norms = _sums_of_squares(out, places, dtype)
        mean = kept.mean(places, dtype=dtype)
    else:
        norms, mean = out.to(dtype).square(), kept.to(dtype)
    power = norms[:, ::step] * (norms.shape[1] / max(1, out[0].numel()))
    return Layer(name, norms.sum(1), torch.stack([mean, power], 1))


def _sums_of_squares(out: Tensor, places: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if out.is_contiguous():
        norms: Tensor = torch.linalg.vector_norm(out, dim=places, dtype=dtype)
        return norms.square()
    return out.to(dtype).square().sum(places)  # ten times as fast with the channels last


def measured_positions(normalising: Collection[int], every: Collection[int]) -> frozenset[int]:
    """Which operators are measured: those that normalise, whose scales are alike, if there are."""
    return frozenset(normalising if len(normalising) >= FEWEST_LAYERS else every)
