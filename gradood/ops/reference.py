"""Executable specification of every operator: slow, obvious, exact in float64 (the noise apart).

Each function materialises the per-sample gradient with PyTorch's own formulas and squares it.
The C++ and Triton kernels and ``torch_backend`` are tested against this file.

Notation: ``x`` is the operator's input and ``d`` the gradient of the loss with respect to its
output, both with the samples along dimension 0. Every function returns squared L2 norms ``[N]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from gradood.ops.philox import normals


def bias_sqnorm(d: Tensor) -> Tensor:
    """``‖Σ_t d_t‖²`` for ``d`` ``[N, P, T]``."""
    return d.sum(2).square().sum(1)


def channel_sums(a: Tensor) -> Tensor:
    """``Σ_t a`` and ``Σ_t a²`` for ``a`` ``[N, C, T]``, together ``[N, 2, C]``."""
    return torch.stack([a.sum(2), a.square().sum(2)], 1)


def batch_norm_sums(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """``y = (x − mean_c) / √(variance_c + eps) · weight_c + bias_c`` for ``x`` ``[N, C, …]``.

    With it its ``channel_sums``.
    """
    y = functional.batch_norm(x, mean, variance, weight, bias, eps=eps)
    return y, channel_sums(y.flatten(2) if y.dim() > 2 else y.unsqueeze(2))


def linear_sqnorm(x: Tensor, d: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """``‖Σ_t d_t x_tᵀ‖²`` and ``‖Σ_t d_t‖²`` for ``x`` ``[N, T, Q]``, ``d`` ``[N, T, P]``."""
    gradient = torch.einsum("ntp,ntq->npq", d, x)
    return _sqnorm(gradient), bias_sqnorm(d.transpose(1, 2)) if bias else d.new_empty(0)


def conv_gradient(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Per-sample convolution weight gradient ``[N, P, C / groups, *kernel_size]``.

    ``G[n, p, c, k] = Σ_o d[n, p, o] · x[n, c, o · stride − padding + k · dilation]``, terms that
    fall outside ``x`` being zero. ``padding`` is the padding before the first element; the sizes of
    ``x`` and ``d`` say how much follows the last.
    """
    nd = len(kernel_size)
    n, channels, out_channels = x.shape[0], x.shape[1], d.shape[1]
    output = d.shape[2:]
    pads: list[int] = []
    for i in reversed(range(nd)):
        reach = (output[i] - 1) * stride[i] + (kernel_size[i] - 1) * dilation[i] + 1
        pads += [padding[i], max(0, reach - padding[i] - x.shape[2 + i])]
    x = functional.pad(x, pads)
    d = d.reshape(n, groups, out_channels // groups, -1)
    gradient = x.new_zeros(n, out_channels, channels // groups, *kernel_size)
    for offset in torch.cartesian_prod(
        *(torch.arange(k, dtype=torch.int64, device="cpu") for k in kernel_size)
    ).view(-1, nd):
        window = x
        for i in range(nd):
            start = int(offset[i]) * dilation[i]
            window = window.narrow(2 + i, start, (output[i] - 1) * stride[i] + 1)
            window = window[(slice(None),) * (2 + i) + (slice(None, None, stride[i]),)]
        taps = window.reshape(n, groups, channels // groups, -1)
        tap = torch.einsum("ngpt,ngct->ngpc", d, taps).reshape(n, out_channels, -1)
        gradient[(slice(None),) * 3 + tuple(int(o) for o in offset)] = tap
    return gradient


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
    """Squared norms of :func:`conv_gradient` and of ``Σ_o d_o`` for ``x`` ``[N, C, *S]``."""
    gradient = conv_gradient(x, d, kernel_size, stride, padding, dilation, groups)
    return _sqnorm(gradient), bias_sqnorm(d.flatten(2)) if bias else d.new_empty(0)


def batch_norm_sqnorm(
    x: Tensor, d: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``Σ_c (Σ_t d (x − mean_c))² / (variance_c + eps)`` and ``Σ_c (Σ_t d)²``.

    ``x`` and ``d`` are ``[N, C, T]``.
    """
    normalised = (x - mean[:, None]) * torch.rsqrt(variance[:, None] + float(eps))
    return (d * normalised).sum(2).square().sum(1), bias_sqnorm(d)


def batch_norm_backward_sqnorm(
    x: Tensor, d: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Both norms of ``batch_norm_sqnorm``, and the gradient of the layer's input.

    It is ``d weight_c / √(variance_c + eps)``; the layer may have no weight.
    """
    rstd = torch.rsqrt(variance + float(eps))
    scale = rstd if weight is None else rstd * weight
    return *batch_norm_sqnorm(x, d, mean, variance, eps), d * scale[:, None]


def layer_norm_sqnorm(x: Tensor, d: Tensor, eps: float, rms: bool) -> tuple[Tensor, Tensor]:
    """``Σ_q (Σ_t d x̂)²`` and ``Σ_q (Σ_t d)²`` for ``x``, ``d`` ``[N, T, Q]``.

    ``x̂`` normalises every row of Q numbers: to zero mean and unit variance, or for ``rms`` by its
    root mean square alone.
    """
    centred = x if rms else x - x.mean(2, keepdim=True)
    normalised = centred * (centred.square().mean(2, keepdim=True) + eps).rsqrt()
    return (d * normalised).sum(1).square().sum(1), d.sum(1).square().sum(1)


def layer_norm_backward_sqnorm(
    x: Tensor, d: Tensor, scale: Tensor, eps: float, rms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Both norms of ``layer_norm_sqnorm``, and the gradient of the layer's input.

    ``r (g − mean g − x̂ mean(g x̂))`` with ``g = scale d`` and r the reciprocal deviation, means over
    a row; without ``mean g`` for ``rms``.
    """
    centred = x if rms else x - x.mean(2, keepdim=True)
    rstd = (centred.square().mean(2, keepdim=True) + eps).rsqrt()
    normalised, g = centred * rstd, d * scale
    gradient = g - normalised * (g * normalised).mean(2, keepdim=True)
    gradient = gradient if rms else gradient - g.mean(2, keepdim=True)
    return *layer_norm_sqnorm(x, d, eps, rms), rstd * gradient


def group_norm_sqnorm(x: Tensor, d: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """``Σ_c (Σ_t d x̂)²`` and ``Σ_c (Σ_t d)²`` for ``x``, ``d`` ``[N, C, T]``.

    ``x̂`` has zero mean and unit variance over each of the ``groups`` groups of channels.
    """
    grouped = x.reshape(x.shape[0], groups, -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    normalised = centred * (centred.square().mean(2, keepdim=True) + eps).rsqrt()
    return (d * normalised.view_as(x)).sum(2).square().sum(1), bias_sqnorm(d)


def embedding_sqnorm(indices: Tensor, d: Tensor, padding_idx: int) -> Tensor:
    """``Σ_v ‖Σ_{t: indices_t = v} d_t‖²`` for ``indices`` ``[N, T]``, ``d`` ``[N, T, Q]``.

    Positions equal to ``padding_idx`` count nothing; −1 means that there is no such index.
    """
    same = indices[:, :, None] == indices[:, None, :]
    same &= (indices.long() != padding_idx)[:, :, None]  # an unsigned one is never -1
    return torch.einsum("nst,nsq,ntq->n", same.to(d.dtype), d, d)


def _sqnorm(gradient: Tensor) -> Tensor:
    return gradient.flatten(1).square().sum(1)


def noisy_batch(
    x: Tensor,
    rows: Tensor,
    inputs: Tensor,
    samples: Tensor,
    key: Tensor,
    sigma: float,
    low: float | None,
    high: float | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """``(clamp(x[rows] + σ n, low, high) − mean_c) rstd_c`` ``[M, C, *S]``, n as in ``philox.py``.

    ``x`` ``[B, C, *S]`` or ``[B, F]`` float32; ``rows``, ``inputs`` and ``samples`` ``[M]``: for
    each copy its row of ``x``, the number of that input and of the sample; ``key`` ``[2]``: seed
    and tag of the stream. float32 throughout, ``dtype`` at the end.
    """
    noisy = x[rows] + normals(tuple(x.shape[1:]), inputs, samples, key) * sigma
    if low is not None or high is not None:
        noisy = noisy.clamp(low, high)
    if mean is not None and rstd is not None:
        by_channel = (-1, *[1] * (x.dim() - 2))
        noisy = (noisy - mean.view(by_channel)) * rstd.view(by_channel)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return noisy.to(dtype).contiguous(memory_format=layout)


def vote_count(
    values: Tensor, rows: Tensor, mode: str, thresholds: Tensor | None, inputs: int
) -> Tensor:
    """How the values of each input fall: int64 ``[inputs, columns]``, ``rows`` the input of each.

    * ``"argmax"``: ``values`` ``[M, C]``; column c counts rows whose first maximum is c.
    * ``"above"``: ``values`` ``[M]``; column k counts values > ``thresholds[k]``.
    * ``"histogram"``: column j counts ``thresholds[j − 1] < v <= thresholds[j]``, the first and
      the last of the K + 1 being open.

    In every mode a NaN counts in a last column of its own, and in no other.
    """
    if mode == "argmax":
        columns = values.shape[1] + 1
        column = torch.where(values.isnan().any(1), columns - 1, values.argmax(1))
        votes = torch.nn.functional.one_hot(column, columns)
    elif thresholds is None:
        raise ValueError(f"vote_count needs thresholds for mode {mode!r}")
    elif mode == "above":
        over = values[:, None] > thresholds
        votes = torch.cat([over, values.isnan()[:, None]], 1).long()
    elif mode == "histogram":
        columns = len(thresholds) + 2
        column = torch.bucketize(values, thresholds)
        votes = torch.nn.functional.one_hot(
            torch.where(values.isnan(), columns - 1, column), columns
        )
    else:
        raise ValueError(f"vote_count knows argmax, above and histogram, not {mode!r}")
    counts = votes.new_zeros(inputs, votes.shape[1])
    return counts.index_add_(0, rows, votes)
