"""The second half of every norm: partial sums of a sample's tiles, added in a fixed order.

Kernels store one float32 number a tile and never add with atomics, so that results do not depend
on the order in which programs run. Bytes moved: 4 a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def vector_sqnorm(vector):
    """``Σ v²`` of a vector that was summed up in a loop.

    Triton 3.8 fails an assertion when the result of such a loop has two uses, as in ``v * v``.
    """
    column = tl.expand_dims(vector, 1)
    return tl.sum(tl.sum(column * column, axis=1), axis=0)


@triton.jit(do_not_specialize=["weights", "biases"])
def _sum_kernel(
    partial,  # [N, weights + biases]
    weight,  # [N]
    bias,  # [N]
    weights,
    biases,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    row = partial + sample * (weights + biases)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, weights, BLOCK):
        total += tl.load(row + start + lane, mask=start + lane < weights, other=0.0)
    tl.store(weight + sample, tl.sum(total, axis=0))
    if BIAS:
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, biases, BLOCK):
            inside = start + lane < biases
            total += tl.load(row + weights + start + lane, mask=inside, other=0.0)
        tl.store(bias + sample, tl.sum(total, axis=0))


def partials(like: Tensor, weights: int, biases: int) -> Tensor:
    """Room for the tiles of every sample of ``like``, ``[N, weights + biases]`` float32."""
    return torch.empty(like.shape[0], weights + biases, dtype=torch.float32, device=like.device)


def sums(partial: Tensor, weights: int) -> tuple[Tensor, Tensor]:
    """``Σ partial[:, :weights]`` and ``Σ partial[:, weights:]``; the second is empty without."""
    samples, columns = partial.shape
    biases = columns - weights
    weight, bias = partial.new_empty(samples), partial.new_empty(samples if biases else 0)
    block = min(1024, max(32, triton.next_power_of_2(weights)))
    _sum_kernel[(samples,)](
        partial, weight, bias, weights, biases, BIAS=biases > 0, BLOCK=block, num_warps=1
    )
    return weight, bias
