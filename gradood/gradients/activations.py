"""What a layer made of a sample, in a few numbers: its norm, and mean and power by channel."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradood import ops
from gradood.ops import reference

#: Channels of a layer of which mean and power are kept, evenly spread: wide layers would outgrow
#: memory, and half of 64 channels tell as much.
MOST_CHANNELS = 64
#: With fewer normalisation layers than these, every operator that uses a parameter is measured.
FEWEST_LAYERS = 3


class Layer(NamedTuple):
    """Measurements of one layer's output a for N samples."""

    name: str
    sums: Tensor
    """``Σ a`` and ``Σ a²`` over positions, by channel, ``[N, 2, D]``."""
    step: int
    """Every so many channels one has its mean and power kept."""
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
        sums = torch.cat([one.sums[:, :, :: one.step] for one in layers], 2)
        counts = tuple(-(-one.sums.shape[2] // one.step) for one in layers)
        positions = [p for one, c in zip(layers, counts, strict=True) for p in [one.positions] * c]
        return Activations(
            torch.stack([one.sums[:, 1].sum(1) for one in layers], 1),
            sums / sums.new_tensor(positions),
            tuple(one.name for one in layers),
            counts,
        )


def measured_layer(name: str, out: Tensor, channel: int) -> Layer:
    """Reads ``out`` ``[N, …]``, whatever its memory format; ``channel`` is counted back."""
    if out.dim() + channel < 1:  # one number a sample
        out, channel = out.reshape(len(out), -1), -1
    by_channel = out.movedim(channel, 1).flatten(2) if out.dim() > 2 else out.unsqueeze(2)
    if out.requires_grad:  # a kernel has no derivative
        exact = by_channel.to(torch.promote_types(out.dtype, torch.float32))
        sums = reference.channel_sums(exact)
    else:
        sums = ops.channel_sums(by_channel)
    return layer_of(name, sums, by_channel.shape[2])


def layer_of(name: str, sums: Tensor, positions: int) -> Layer:
    """A layer of which ``channel_sums`` over so many positions are known."""
    return Layer(name, sums, max(1, -(-sums.shape[2] // MOST_CHANNELS)), max(1, positions))


def measured_positions(normalising: Collection[int], every: Collection[int]) -> frozenset[int]:
    """The operators to measure: those that normalise, if there are any: their scales agree."""
    return frozenset(normalising if len(normalising) >= FEWEST_LAYERS else every)
