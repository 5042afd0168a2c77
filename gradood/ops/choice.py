"""Which algorithm computes a norm: the one place where the choice is made.

Costs are multiply-adds per sample. A direct algorithm forms the per-sample gradient ``[P, Q]`` tile
by tile and squares it; a Gram algorithm multiplies the two T × T matrices of inner products, of
which only the upper triangles are needed, and never forms the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

#: Relative cost of one multiply-add of the k² shifted reductions of shift-Gram, which stream two
#: matrices, against one of a blocked matrix product, which reuses registers.
SHIFT_COST = 8


def linear(tokens: int, inputs: int, outputs: int) -> str:
    """``"outer"`` for one token, else the cheaper of ``"gram"`` and ``"direct"``.

    Gram costs ``T² (p + q) / 2``, direct ``T p q``.
    """
    if tokens == 1:
        return "outer"
    return "gram" if tokens * (inputs + outputs) / 2 < inputs * outputs else "direct"


def conv(
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
) -> str:
    """The algorithm for ``x`` ``[C, *S]`` and ``d`` ``[P, *T]``.

    * ``"pointwise"``: kernel of size one without padding, which is a linear layer over pixels.
    * ``"depthwise"``: one input channel a group, which has no inner product to block.
    * ``"shift_gram"``: ``(S² C + T² P) / 2 + 8 T² k²``, with S and T pixels and k² kernel taps; in
      two dimensions and without groups.
    * ``"direct"``: ``P Q T`` with ``Q = C k² / groups``.
    """
    channels, out_channels = input_shape[0], output_shape[0]
    pixels, outputs, taps = prod(input_shape[1:]), prod(output_shape[1:]), prod(kernel_size)
    if groups == channels and groups > 1:
        return "depthwise"
    if taps == 1 and not any(padding) and groups == 1:
        return "pointwise"
    if groups > 1 or len(kernel_size) != 2:
        return "direct"
    gram = (pixels**2 * channels + outputs**2 * out_channels) / 2 + SHIFT_COST * outputs**2 * taps
    return "shift_gram" if gram < out_channels * channels * taps * outputs else "direct"
