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
    #: Of the products of Winograd's algorithm, 36 for a tile of 4 × 4 outputs of a 3 × 3 kernel of
    #: stride one in place of 144, transforms included; 4 where there is none.
    winograd: float = 4


TORCH = Costs(gram=1, pixel_gram=1, shift=8, phases=False)

#: Counted, not measured: no GPU was at hand. Tensor cores do Gram matrices and direct products
#: alike; the shifted sums stream from L2.
TRITON = Costs(gram=1, pixel_gram=1, shift=8, phases=False)


def _measured() -> dict[str, Costs]:
    """The C++ kernels' costs by instruction set, as ``benchmarks/crossovers_cpu.py`` measured."""
    with (Path(__file__).parent / "crossovers.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["isa"]: Costs(
                gram=float(row["gram"]),
                pixel_gram=float(row["pixel_gram"]),
                shift=float(row["shift"]),
                phases=True,
                winograd=float(row["winograd"]),
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


def conv(
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
    costs: Costs = TORCH,
    dilation: Sequence[int] = (),
) -> str:
    """The algorithm for ``x`` ``[C, *S]`` and ``d`` ``[P, *T]``.

    * ``"pointwise"``: kernel of size one without padding, which is a linear layer over pixels.
    * ``"depthwise"``: one input channel a group, which has no inner product to block.
    * ``"shift_gram"``: ``(Σ_phase S² C + T² P) / 2`` for the Gram matrices and ``g T² k²`` for
      their shifted sums, with S and T pixels, k² kernel taps and g groups.
    * ``"direct"``: ``P Q T`` with ``Q = C k² / g``, or fewer by Winograd's algorithm.
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
    direct = float(out_channels * channels // groups * taps * outputs)
    if tuple(kernel_size) == (3, 3) and max(*stride, *dilation) == 1:
        direct = min(direct, costs.winograd * winograd_products(channels // groups, output_shape))
    return "shift_gram" if gram < direct else "direct"


def winograd_products(channels: int, output_shape: Sequence[int]) -> int:
    """The products of a 3 × 3 kernel that reads ``channels``: 36 for each tile of 4 × 4 outputs."""
    return 36 * output_shape[0] * channels * prod(-(-size // 4) for size in output_shape[1:])
