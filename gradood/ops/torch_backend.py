"""Every operator in plain PyTorch: any device, any dtype, chunked so that memory stays bounded.

Formulas as in ``reference.py``; algorithms as in ``choice.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradood.ops import choice, grid, reference
from gradood.ops.row_norms import row_sqnorm

NAME = "torch"
TAKES_OVER = ("batch_norm_backward_sqnorm",)  # PyTorch's own of layer norm wastes nothing

#: Temporaries of one chunk of samples stay near this size, so that they fit the last-level cache.
CHUNK_BYTES = 8 << 20


def unavailable() -> str | None:
    """Return why this backend cannot be used on this machine: never."""
    return None


def reject(op: str, *args: object) -> str | None:
    """Return why this backend cannot serve a call: never."""
    return None


def algorithm(op: str, *args: object) -> str:
    """Name the algorithm that serves a call."""
    if op == "linear_sqnorm":
        x, d = args[:2]
        assert isinstance(x, Tensor) and isinstance(d, Tensor)
        return choice.linear(x.shape[1], x.shape[2], d.shape[2])
    if op == "conv_sqnorm":
        x, d, kernel_size, stride, padding, _, groups, *_ = args
        return _conv_algorithm(x, d, kernel_size, stride, padding, groups)  # type: ignore[arg-type]
    return "fused"


def bias_sqnorm(d: Tensor) -> Tensor:
    """See ``reference.bias_sqnorm``."""
    return row_sqnorm(_accumulate(d).sum(2))


def linear_sqnorm(x: Tensor, d: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """See ``reference.linear_sqnorm``."""
    x, d = _promote(x, d)
    tokens, inputs, outputs = x.shape[1], x.shape[2], d.shape[2]
    kind = choice.linear(tokens, inputs, outputs)
    if kind == "outer":
        bias_norm = row_sqnorm(d[:, 0])
        return row_sqnorm(x[:, 0]) * bias_norm, bias_norm if bias else d.new_empty(0)
    bias_norm = row_sqnorm(d.sum(1)) if bias else d.new_empty(0)
    match kind:
        case "gram":
            step = 2 * tokens * tokens
            weight = _chunked(lambda a, b: _gram(a, b), step, x, d)
        case _:
            step = inputs * outputs
            weight = _chunked(lambda a, b: _product_sqnorm(b.transpose(1, 2), a), step, x, d)
    return weight, bias_norm


def conv_sqnorm(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """See ``reference.conv_sqnorm``."""
    kind = _conv_algorithm(x, d, kernel_size, stride, padding, groups)
    x, d = _promote(x, d)
    if kind == "pointwise":
        for i, (s, size) in enumerate(zip(stride, d.shape[2:], strict=True)):
            x = x.narrow(2 + i, 0, (size - 1) * s + 1)
            x = x[(slice(None),) * (2 + i) + (slice(None, None, s),)]
        return linear_sqnorm(x.flatten(2).transpose(1, 2), d.flatten(2).transpose(1, 2), bias)
    bias_norm = row_sqnorm(d.flatten(2).sum(2)) if bias else d.new_empty(0)
    outputs, taps = prod(d.shape[2:]), prod(kernel_size)
    geometry = (tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation))
    match kind:
        case "depthwise":
            step = 8 * (x[0].numel() + d[0].numel())
            weight = _chunked(lambda a, b: _depthwise(a, b, *geometry), step, x, d)
        case "shift_gram":
            padded = prod(size + k - 1 for size, k in zip(x.shape[2:], kernel_size, strict=True))
            step = padded**2 + outputs**2
            weight = _chunked(lambda a, b: _shift_gram(a, b, *geometry), step, x, d)
        case _:
            patch = x.shape[1] // groups * taps
            step = x.shape[1] * taps * outputs + d.shape[1] * patch
            weight = _chunked(lambda a, b: _direct(a, b, *geometry, groups), step, x, d)
    return weight, bias_norm


def batch_norm_sqnorm(x: Tensor, d: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """See ``reference.batch_norm_sqnorm``."""
    x, d = _promote(x, d)
    mean, rstd = mean.to(x.dtype), rstd.to(x.dtype)

    def moments(x: Tensor, d: Tensor) -> Tensor:
        centred = torch.sub(x, mean[:, None]).mul_(d)
        return torch.stack([centred.sum(2).mul_(rstd).square_().sum(1), row_sqnorm(d.sum(2))])

    return _pair(_chunked(moments, x[0].numel(), x, d))


def batch_norm_backward_sqnorm(
    x: Tensor, d: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.batch_norm_backward_sqnorm``."""
    return *batch_norm_sqnorm(x, d, mean, rstd), (d * scale[:, None]).to(d.dtype)


def layer_norm_sqnorm(x: Tensor, d: Tensor, eps: float, rms: bool) -> tuple[Tensor, Tensor]:
    """See ``reference.layer_norm_sqnorm``."""
    x, d = _promote(x, d)
    width = (x.shape[2],)

    def moments(x: Tensor, d: Tensor) -> Tensor:
        if rms:
            normalised = x * (x.square().mean(2, keepdim=True) + eps).rsqrt()
        else:
            normalised = functional.layer_norm(x, width, eps=eps)
        return torch.stack([row_sqnorm((normalised * d).sum(1)), row_sqnorm(d.sum(1))])

    return _pair(_chunked(moments, 2 * x[0].numel(), x, d))


def layer_norm_backward_sqnorm(
    x: Tensor, d: Tensor, scale: Tensor, eps: float, rms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.layer_norm_backward_sqnorm``."""
    norms = layer_norm_sqnorm(x, d, eps, rms)
    dtype, (x, d) = x.dtype, _promote(x, d)
    scale = scale.to(x.dtype)
    if rms:
        rstd = (x.square().mean(2, keepdim=True) + eps).rsqrt()
        normalised, g = x * rstd, d * scale
        gradient = rstd * (g - normalised * (g * normalised).mean(2, keepdim=True))
    else:
        variance, mean = torch.var_mean(x, 2, correction=0, keepdim=True)
        statistics, wanted = (mean, (variance + eps).rsqrt()), [True, False, False]
        arguments = (d.contiguous(), x.contiguous(), scale.shape, *statistics, scale, None, wanted)
        gradient = torch.ops.aten.native_layer_norm_backward(*arguments)[0]
    return *norms, gradient.to(dtype)


def group_norm_sqnorm(x: Tensor, d: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """See ``reference.group_norm_sqnorm``."""
    x, d = _promote(x, d)

    def moments(x: Tensor, d: Tensor) -> Tensor:
        grouped = x.reshape(x.shape[0], groups, -1)
        normalised = functional.layer_norm(grouped, grouped.shape[2:], eps=eps).view(x.shape)
        return torch.stack([row_sqnorm((normalised * d).sum(2)), row_sqnorm(d.sum(2))])

    return _pair(_chunked(moments, 2 * x[0].numel(), x, d))


def embedding_sqnorm(indices: Tensor, d: Tensor, padding_idx: int) -> Tensor:
    """See ``reference.embedding_sqnorm``.

    Equal indices of a sample are added in a buffer of T rows, so the vocabulary never shows.
    """
    d = _accumulate(d)
    order = indices.argsort(dim=1)
    ordered = indices.gather(1, order)
    starts = torch.ones_like(ordered)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    row = starts.cumsum(1) - 1
    d = d.masked_fill((indices == padding_idx)[..., None], 0)
    slot = torch.empty_like(row).scatter_(1, order, row)

    def segments(slot: Tensor, d: Tensor) -> Tensor:
        total = torch.zeros(d.shape, dtype=d.dtype, device=d.device)
        return row_sqnorm(total.scatter_add_(1, slot[..., None].expand_as(d), d).flatten(1))

    if d.shape[1] > _LONGEST_SUM:
        return _chunked(segments, d[0].numel(), slot, d.double()).to(d.dtype)
    return _chunked(segments, d[0].numel(), slot, d)


def noisy_batch(
    x: Tensor, rows: Tensor, inputs: Tensor, samples: Tensor, key: Tensor, *options: Any
) -> Tensor:
    """See ``reference.noisy_batch``."""
    return _in_parts(reference.noisy_batch, 64, x, rows, inputs, samples, key, *options)


def grid_batch(
    x: Tensor, rows: Tensor, inputs: Tensor, samples: Tensor, key: Tensor, *options: Any
) -> Tensor:
    """See ``grid.grid_batch``."""
    return _in_parts(grid.grid_batch, 256, x, rows, inputs, samples, key, *options)


def _in_parts(
    draw: Callable[..., Tensor],
    bytes_each: int,
    x: Tensor,
    rows: Tensor,
    inputs: Tensor,
    samples: Tensor,
    key: Tensor,
    *options: Any,
) -> Tensor:
    """Copies drawn a few at a time, so that all words and steps of them fit the cache."""
    step = max(1, CHUNK_BYTES // max(1, bytes_each * x[:1].numel()))
    parts = [
        draw(x, r, i, s, key, *options)
        for r, i, s in zip(rows.split(step), inputs.split(step), samples.split(step), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


vote_count = reference.vote_count


def _conv_algorithm(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
) -> str:
    return choice.conv(x.shape[1:], d.shape[1:], kernel_size, stride, padding, groups)


def _accumulate(t: Tensor) -> Tensor:
    """Return ``t`` in a dtype that sums safely: float32 for half precision."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _promote(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    x, d = _accumulate(x), _accumulate(d)
    dtype = torch.promote_types(x.dtype, d.dtype)
    return x.to(dtype), d.to(dtype)


def _pair(stacked: Tensor) -> tuple[Tensor, Tensor]:
    return stacked[0].clone(), stacked[1].clone()  # outputs of an operator must not share memory


def _chunks(samples: int, elements: int, itemsize: int) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // max(1, elements * itemsize))
    return (slice(i, i + size) for i in range(0, samples, size))


def _chunked(function: Callable[..., Tensor], elements: int, *tensors: Tensor) -> Tensor:
    """Apply ``function`` to chunks of samples that need ``elements`` temporaries a sample."""
    itemsize = tensors[-1].element_size()
    parts = [
        function(*(t[chunk] for t in tensors))
        for chunk in _chunks(tensors[0].shape[0], elements, itemsize)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _product_sqnorm(a: Tensor, b: Tensor) -> Tensor:
    return row_sqnorm(torch.bmm(a, b).flatten(1))


#: Rows of an embedding are added one after the other: so many of them in float32.
_LONGEST_SUM = 1 << 14

#: Where the gradients of single positions cancel, what is left is lost in the rounding of their
#: inner products: below this share of the products' diagonal the gradient itself is formed.
_LEAST = 0.05


def _unless_cancelled(
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


def _gram(x: Tensor, d: Tensor) -> Tensor:
    inputs = torch.bmm(x, x.transpose(1, 2))
    products = inputs.mul_(torch.bmm(d, d.transpose(1, 2)))
    return _unless_cancelled(products, lambda a, b: _product_sqnorm(b.transpose(1, 2), a), x, d)


def _pad_to_output(
    x: Tensor,
    output: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Pad ``x`` with zeros so that every tap of every output position lies inside."""
    pads: list[int] = []
    for i in reversed(range(len(kernel_size))):
        reach = (output[i] - 1) * stride[i] + (kernel_size[i] - 1) * dilation[i] + 1
        pads += [padding[i], max(0, reach - padding[i] - x.shape[2 + i])]
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


def _direct(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    n, output = x.shape[0], d.shape[2:]
    x = _pad_to_output(x, output, kernel_size, stride, padding, dilation)
    columns = _windows(x, output, kernel_size, stride, dilation)
    columns = columns.reshape(n * groups, -1, prod(output))
    d = d.reshape(n * groups, -1, prod(output))
    product = torch.bmm(d, columns.transpose(1, 2))
    return row_sqnorm(product.view(n, -1))


def _depthwise(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
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


def _shift_gram(
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
    pads = []
    for i in (1, 0):
        reach = (output[i] - 1) * stride[i] + (kernel_size[i] - 1) * dilation[i] + 1
        pads += [padding[i], max(0, reach - padding[i] - x.shape[2 + i])]
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
    return _unless_cancelled(products, lambda a, b: _direct(a, b, *geometry), x, d)
