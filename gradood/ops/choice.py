"""Choose the algorithm that computes a norm; nothing else makes this choice.

Costs are multiply-adds per sample, weighted by what one takes relative to one of the direct
algorithm. A direct algorithm forms the per-sample gradient ``[P, Q]`` tile by tile and squares it;
a Gram algorithm multiplies the two T × T matrices of inner products, of which only the upper
triangles are needed, and never forms the gradient.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple


class Costs(NamedTuple):
    """The cost of a multiply-add in one backend, relative to one of its direct algorithm."""

    #: Of the Gram matrices of tokens, and of those of pixels under a kernel.
    gram: float
    pixel_gram: float
    #: Of the k² shifted sums of shift-Gram, which stream two matrices and reuse no registers.
    shift: float
    #: Pixels are split by their phase of the stride, whose Gram matrices are smaller; any number of
    #: spatial dimensions and groups.
    phases: bool
    #: Kernels of 3 × 3 and stride one are multiplied by Winograd's algorithm.
    tiles: bool = False


TORCH = Costs(gram=1, pixel_gram=1, shift=8, phases=False)

#: Counted, not measured: no GPU was at hand. Tensor cores do Gram matrices and direct products
#: alike; the shifted sums stream from L2.
TRITON = Costs(gram=1, pixel_gram=1, shift=8, phases=False)


def _measured() -> dict[str, Costs]:
    """The C++ kernels' costs by instruction set, as ``benchmarks/crossovers_cpu.py`` measured."""
    with (Path(__file__).parent / "crossovers.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["isa"]: Costs(
                float(row["gram"]),
                float(row["pixel_gram"]),
                float(row["shift"]),
                phases=True,
                tiles=row["isa"] != "amx",  # whose unit multiplies as they are
            )
            for row in csv.DictReader(file)
        }


#: One sample is one thread's, so that the number of threads makes no difference.
CPP = _measured()


def linear(
    tokens: int, inputs: int, outputs: int, costs: Costs = TORCH, pixels: bool = False
) -> str:
    """``"outer"`` for one token, else the cheaper of ``"gram"`` and ``"direct"``.

    Gram costs ``T² (p + q) / 2``, direct ``T p q``; tokens may be ``pixels`` of a convolution.
    """
    if tokens == 1:
        return "outer"
    gram = (costs.pixel_gram if pixels else costs.gram) * tokens * (inputs + outputs) / 2
    return "gram" if gram < inputs * outputs else "direct"


def _tiled(channels: int, out_channels: int, output_shape: Sequence[int]) -> int:
    """Multiply-adds of a group by tiles of 4 × 4 outputs, as ``WinogradPlan::pays`` counts them.

    36 products of each pair of channels and two transformations a tile, and one of the sums.
    """
    tiles = prod(-(-size // 4) for size in output_shape[1:])
    pairs = channels * out_channels
    return tiles * (36 * pairs + 330 * channels + 240 * out_channels) + 200 * pairs


def conv(
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
    costs: Costs = TORCH,
) -> str:
    """The algorithm for ``x`` ``[C, *S]`` and ``d`` ``[P, *T]``.

    * ``"pointwise"``: kernel of size one without padding, which is a linear layer over pixels.
    * ``"depthwise"``: one input channel a group, which has no inner product to block.
    * ``"shift_gram"``: ``(Σ_phase S² C + T² P) / 2`` for the Gram matrices and ``g T² k²`` for
      their shifted sums, with S and T pixels, k² kernel taps and g groups.
    * ``"direct"``: ``P Q T`` with ``Q = C k² / g``; fewer where ``tiles`` serve (``winograd.h``).
    """
    channels, out_channels = input_shape[0], output_shape[0]
    pixels, outputs, taps = prod(input_shape[1:]), prod(output_shape[1:]), prod(kernel_size)
    if groups == channels and groups > 1:
        return "depthwise"
    if taps == 1 and not any(padding) and groups == 1:
        return "pointwise"
    if not costs.phases and (groups > 1 or len(kernel_size) != 2):
        return "direct"
    seen = pixels**2 / (prod(stride) if costs.phases else 1)
    gram = costs.pixel_gram * (seen * channels + outputs**2 * out_channels) / 2
    gram += costs.shift * groups * outputs**2 * taps
    direct = out_channels * channels // groups * taps * outputs
    if costs.tiles and tuple(kernel_size) == (3, 3) and prod(stride) == 1:
        direct = min(
            direct, groups * _tiled(channels // groups, out_channels // groups, output_shape)
        )
    return "shift_gram" if gram < direct else "direct"
