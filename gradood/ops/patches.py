"""A convolution over patches that do not overlap is a linear layer, at the price of a copy.

The kernels walk a stride by its phases, of which a patch of a vision transformer has hundreds with
a few pixels each.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

#: Below, the convolution's own kernels are faster than the copy.
LEAST_TAPS = 64


def cuts(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> bool:
    """Whether a convolution cuts its input into large patches that are next to one another."""
    dimensions = {x.dim() - 2, d.dim() - 2, *map(len, (kernel_size, stride, padding, dilation))}
    if len(dimensions) > 1 or min(kernel_size) < 1:
        return False  # inconsistent sizes: the kernels report the error
    if groups != 1 or any(padding) or prod(kernel_size) < LEAST_TAPS or max(dilation) != 1:
        return False
    sizes = zip(x.shape[2:], d.shape[2:], kernel_size, stride, strict=True)
    return all(k == s and n == t * k for n, t, k, s in sizes)


def split(x: Tensor, d: Tensor, kernel_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Patches ``[N, T, C k²]`` and their gradients ``[N, T, P]``."""
    spatial = len(kernel_size)
    for i, k in reversed(list(enumerate(kernel_size))):
        x = x.unflatten(2 + i, (x.shape[2 + i] // k, k))
    places, inside = range(2, 2 + 2 * spatial, 2), range(3, 3 + 2 * spatial, 2)
    x = x.permute(0, *places, 1, *inside).flatten(1, spatial).flatten(2)
    return x, d.flatten(2).transpose(1, 2)
