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
from gradood.ops.torch_conv import depthwise, direct, shift_gram, unless_cancelled

NAME = "torch"
OPERATORS = (
    *("bias_sqnorm", "linear_sqnorm", "conv_sqnorm", "embedding_sqnorm"),
    *("batch_norm_sqnorm", "layer_norm_sqnorm", "group_norm_sqnorm"),
    *("batch_norm_backward_sqnorm", "layer_norm_backward_sqnorm"),
    *("channel_sums", "batch_norm_sums"),
    *("noisy_batch", "grid_batch", "vote_count"),
)
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


def channel_sums(a: Tensor) -> Tensor:
    """See ``reference.channel_sums``."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    if a.is_contiguous():
        squares = torch.linalg.vector_norm(a, dim=2, dtype=dtype).square()
    else:
        squares = a.to(dtype).square().sum(2)  # ten times as fast with the channels last
    return torch.stack([a.sum(2, dtype=dtype), squares], 1)


batch_norm_sums = reference.batch_norm_sums


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
            weight = _chunked(lambda a, b: depthwise(a, b, *geometry), step, x, d)
        case "shift_gram":
            padded = prod(size + k - 1 for size, k in zip(x.shape[2:], kernel_size, strict=True))
            step = padded**2 + outputs**2
            weight = _chunked(lambda a, b: shift_gram(a, b, *geometry), step, x, d)
        case _:
            patch = x.shape[1] // groups * taps
            step = x.shape[1] * taps * outputs + d.shape[1] * patch
            weight = _chunked(lambda a, b: direct(a, b, *geometry, groups), step, x, d)
    return weight, bias_norm


def batch_norm_sqnorm(
    x: Tensor, d: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See ``reference.batch_norm_sqnorm``."""
    x, d = _promote(x, d)
    mean, rstd = mean.to(x.dtype), torch.rsqrt(variance.to(x.dtype) + eps)

    def moments(x: Tensor, d: Tensor) -> Tensor:
        centred = torch.sub(x, mean[:, None]).mul_(d)
        return torch.stack([centred.sum(2).mul_(rstd).square_().sum(1), row_sqnorm(d.sum(2))])

    return _pair(_chunked(moments, x[0].numel(), x, d))


def batch_norm_backward_sqnorm(
    x: Tensor, d: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.batch_norm_backward_sqnorm``."""
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    return *batch_norm_sqnorm(x, d, mean, variance, eps), (d * scale[:, None]).to(d.dtype)


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


def _gram(x: Tensor, d: Tensor) -> Tensor:
    inputs = torch.bmm(x, x.transpose(1, 2))
    products = inputs.mul_(torch.bmm(d, d.transpose(1, 2)))
    return unless_cancelled(products, lambda a, b: _product_sqnorm(b.transpose(1, 2), a), x, d)
