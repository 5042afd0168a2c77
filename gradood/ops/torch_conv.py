"""Convolutions in plain PyTorch: the gradient itself, one channel a group, Gram matrices of pixels.

Each takes a chunk of samples whose temporaries fit the cache; see ``torch_backend``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from gradood.ops.row_norms import row_sqnorm

#: Where the gradients of single positions cancel, what is left is lost in the rounding of their
#: inner products: below this share of the products' diagonal the gradient itself is formed.
_LEAST = 0.05


def unless_cancelled(
    products: Tensor, direct: Callable[[Tensor, Tensor], Tensor], x: Tensor, d: Tensor
) -> Tensor:
    """``Σ_ts`` of products ``[N, T, T]`` of inner products; ``direct(x, d)`` where they cancel."""
    total = products.flatten(1).sum(1)
    if products.device.type != "cpu":
        return total  # asking would wait for the device
    cancelled = total < _LEAST * products.diagonal(dim1=1, dim2=2).sum(1)
    if cancelled.any():
        for n in cancelled.nonzero()[:, 0].tolist():
            total[n : n + 1] = direct(x[n : n + 1], d[n : n + 1])
    return total


def _pads(
    sizes: Sequence[int],
    output: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Zeros before and after each dimension, the last one first, so that every tap lies inside."""
    pads: list[int] = []
    for i in reversed(range(len(kernel_size))):
        reach = (output[i] - 1) * stride[i] + (kernel_size[i] - 1) * dilation[i] + 1
        pads += [padding[i], max(0, reach - padding[i] - sizes[i])]
    return pads


def _pad_to_output(
    x: Tensor,
    output: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Pad ``x`` with zeros so that every tap of every output position lies inside."""
    pads = _pads(x.shape[2:], output, kernel_size, stride, padding, dilation)
    return functional.pad(x, pads) if any(pads) else x.contiguous()


def _windows(
    x: Tensor,
    output: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """View a padded ``x`` as ``[N, C, *kernel, *output]`` without a copy."""
    spatial = x.stride()[2:]
    taps = tuple(s * d for s, d in zip(spatial, dilation, strict=True))
    steps = tuple(s * t for s, t in zip(spatial, stride, strict=True))
    return x.as_strided(
        (*x.shape[:2], *kernel_size, *output), (*x.stride()[:2], *taps, *steps), x.storage_offset()
    )


def direct(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """``‖Σ_t d_t x_tᵀ‖²``: the gradient of every sample itself."""
    n, output = x.shape[0], d.shape[2:]
    x = _pad_to_output(x, output, kernel_size, stride, padding, dilation)
    columns = _windows(x, output, kernel_size, stride, dilation)
    columns = columns.reshape(n * groups, -1, prod(output))
    d = d.reshape(n * groups, -1, prod(output))
    product = torch.bmm(d, columns.transpose(1, 2))
    return row_sqnorm(product.view(n, -1))


def depthwise(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``direct`` for one input channel a group, tap by tap."""
    n, channels, output = x.shape[0], x.shape[1], d.shape[2:]
    x = _pad_to_output(x, output, kernel_size, stride, padding, dilation)
    if x.dtype == torch.float32 and x.device.type == "cpu" and len(kernel_size) == 2:
        # One convolution of every channel of every sample with its own gradient: the library's
        # depthwise kernel, which exists in float32, is several times faster than the taps below.
        planes = x.reshape(1, n * channels, *x.shape[2:])
        filters = d.reshape(-1, 1, *output)
        taps = torch.conv2d(planes, filters, stride=dilation, dilation=stride, groups=n * channels)
        return row_sqnorm(taps[..., : kernel_size[0], : kernel_size[1]].reshape(n, -1))
    windows = _windows(x, output, kernel_size, stride, dilation)
    nd = len(kernel_size)
    windows = windows.permute(*range(2, 2 + nd), 0, 1, *range(2 + nd, 2 + 2 * nd))
    windows = windows.flatten(0, nd - 1)
    d = d.reshape(n, channels, -1, *output)
    total = d.new_zeros(n)
    for tap in windows:
        product = (tap.unsqueeze(2) * d).flatten(3).sum(3)
        total += product.square_().sum((1, 2))
    return total


def shift_gram(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``Σ_{t,t'} D[t,t'] Σ_δ X[t+δ, t'+δ]`` with pixel Grams ``X = xᵀx`` and ``D = dᵀd``."""
    output = d.shape[2:]
    (height, width), n = x.shape[2:], x.shape[0]
    pixels, gradients = x.flatten(2), d.flatten(2)
    inputs = torch.bmm(pixels.transpose(1, 2), pixels).view(n, height, width, height, width)
    outputs = torch.bmm(gradients.transpose(1, 2), gradients).view(n, *output, *output)
    pads = _pads(x.shape[2:], output, kernel_size, stride, padding, dilation)
    inputs = functional.pad(inputs, pads + pads)

    def rows(tap: int, axis: int) -> slice:
        start = tap * dilation[axis]
        return slice(start, start + (output[axis] - 1) * stride[axis] + 1, stride[axis])

    total: Tensor | None = None
    for a in range(kernel_size[0]):
        for b in range(kernel_size[1]):
            window = (rows(a, 0), rows(b, 1))
            shifted = inputs[(slice(None),) + window + window]
            total = shifted.clone() if total is None else total.add_(shifted)
    assert total is not None
    products = total.mul_(outputs).view(n, prod(output), prod(output))
    geometry = (kernel_size, stride, padding, dilation, 1)
    return unless_cancelled(products, lambda a, b: direct(a, b, *geometry), x, d)
