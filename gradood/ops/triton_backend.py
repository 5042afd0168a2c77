"""Every operator in Triton on CUDA: arrange the tensors, choose the algorithm, launch ``kernels/``.

Formulas as in ``reference.py``; float32, bfloat16 and float16 inputs in any layout, sums in
float32. ``precision``, as a context, says how float32 operands are multiplied. Under
``TRITON_INTERPRET=1`` the same kernels run on CPU tensors, slowly.

No figure of this backend was measured on a GPU yet; its kernels are tested in the interpreter and
compiled for sm_80, sm_90, sm_100, sm_120, gfx942 and gfx950.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from triton.runtime import driver

from gradood.kernels import affine, conv, depthwise, gram, launch, noise, outer, pixel_gram, votes
from gradood.kernels.launch import precision
from gradood.kernels.layout import Geometry
from gradood.ops import choice

__all__ = ["NAME", "algorithm", "precision", "reject", "unavailable"]

NAME = "triton"

#: What the kernels are compiled and checked for: NVIDIA from compute capability 8.0, and these.
AMD = ("gfx942", "gfx950")

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Offsets inside a sample are 32-bit, offsets of samples 64-bit.
_MOST_ELEMENTS = 2**31 - 2**16


def unavailable() -> str | None:
    """Return why this backend cannot be used on this machine, or None."""
    if launch.INTERPRETING:
        return None
    try:
        target = driver.active.get_current_target()
    except RuntimeError:
        return "no GPU that Triton supports is visible (TRITON_INTERPRET=1 runs it on the CPU)"
    if target.backend == "cuda" and target.arch < 80:
        found = f"{target.arch // 10}.{target.arch % 10}"
        return f"the GPU has compute capability {found}, and the kernels need 8.0 or later"
    if target.backend == "hip" and target.arch not in AMD:
        return f"the kernels were not checked for {target.arch}, only for {' and '.join(AMD)}"
    return None


def reject(op: str, *args: object) -> str | None:
    """Return why this backend cannot serve a call, or None."""
    if op.endswith("_backward_sqnorm"):
        return "gradients that flow on are left to PyTorch"
    if op == "grid_batch":
        return "noise in float64 is left to PyTorch"
    tensors = [a for a in args if isinstance(a, Tensor)]
    for t in tensors[:2]:
        if t.is_floating_point() and t.dtype not in _DTYPES:
            return f"{t.dtype} is left to PyTorch"
        if _extent(t) > _MOST_ELEMENTS:
            return "a sample of 2³¹ elements or more"
    for t in tensors:
        if t.device.type != "cuda" and not (launch.INTERPRETING or _dry()):
            return f"tensor on {t.device}"
    if op == "conv_sqnorm" and tensors[0].dim() > 5:
        return "more than three spatial dimensions"
    return None


def algorithm(op: str, *args: object) -> str:
    """Name the algorithm that serves a call."""
    if op == "linear_sqnorm":
        x, d = args[:2]
        assert isinstance(x, Tensor) and isinstance(d, Tensor)
        return choice.linear(x.shape[1], x.shape[2], d.shape[2], choice.TRITON)
    if op == "conv_sqnorm":
        x, d, kernel_size, stride, padding, _, groups = args[:7]
        assert isinstance(x, Tensor) and isinstance(d, Tensor)
        shapes = (x.shape[1:], d.shape[1:])
        kind = choice.conv(*shapes, kernel_size, stride, padding, groups, choice.TRITON)  # type: ignore[arg-type]
        too_large = prod(x.shape[2:]) > pixel_gram.MOST_PIXELS
        return "direct" if kind == "shift_gram" and too_large else kind
    return "fused"


def bias_sqnorm(d: Tensor) -> Tensor:
    """See ``reference.bias_sqnorm``."""
    if d.numel() == 0:
        return _zeros(d)
    return affine.bias_sqnorm(d.transpose(1, 2))


def linear_sqnorm(x: Tensor, d: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """See ``reference.linear_sqnorm``."""
    if x.numel() == 0 or d.numel() == 0:
        return _zeros(d), bias_sqnorm(d.transpose(1, 2)) if bias else _zeros(d[:0])
    x, d = _alike(x, d)
    match algorithm("linear_sqnorm", x, d):
        case "outer":
            return outer.rank_one_sqnorm(x[:, 0], d[:, 0], bias)
        case "gram":
            return gram.gram_sqnorm(x, d, bias)
        case _:
            return outer.outer_sqnorm(x, d, bias)


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
    if x.numel() == 0 or d.numel() == 0:
        return _zeros(d), bias_sqnorm(d.flatten(2)) if bias else _zeros(d[:0])
    x, d = _alike(x, d)
    geometry = Geometry.of(kernel_size, stride, padding, dilation, groups)
    match algorithm("conv_sqnorm", x, d, kernel_size, stride, padding, dilation, groups):
        case "pointwise":
            return linear_sqnorm(*conv.pointwise_tokens(x, d, tuple(stride)), bias)
        case "depthwise":
            return depthwise.depthwise_sqnorm(x, d, geometry, bias)
        case "shift_gram":
            return pixel_gram.shift_gram_sqnorm(x, d, geometry, bias)
        case _:
            return conv.conv_sqnorm(x, d, geometry, bias)


def batch_norm_sqnorm(x: Tensor, d: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """See ``reference.batch_norm_sqnorm``."""
    if d.numel() == 0:
        return _zeros(d), _zeros(d)
    statistics = affine.Statistics(
        mean.float().contiguous(), rstd.float().contiguous(), affine.PER_CHANNEL
    )
    return affine.affine_sqnorm(x.transpose(1, 2), d.transpose(1, 2), statistics)


def layer_norm_sqnorm(x: Tensor, d: Tensor, eps: float, rms: bool) -> tuple[Tensor, Tensor]:
    """See ``reference.layer_norm_sqnorm``."""
    if d.numel() == 0:
        return _zeros(d), _zeros(d)
    return affine.affine_sqnorm(x, d, affine.statistics_of(x, None, eps, rms))


def group_norm_sqnorm(x: Tensor, d: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """See ``reference.group_norm_sqnorm``."""
    if d.numel() == 0:
        return _zeros(d), _zeros(d)
    x, d = x.transpose(1, 2), d.transpose(1, 2)
    return affine.affine_sqnorm(x, d, affine.statistics_of(x, groups, eps, rms=False))


def embedding_sqnorm(indices: Tensor, d: Tensor, padding_idx: int) -> Tensor:
    """See ``reference.embedding_sqnorm``."""
    if d.numel() == 0:
        return _zeros(d)
    return gram.embedding_sqnorm(indices, d, padding_idx)


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
    """Noisy copies of rows of ``x``, see ``kernels.noise``."""
    if rows.numel() == 0 or x.numel() == 0:
        return torch.empty(len(rows), *x.shape[1:], dtype=dtype, device=x.device)
    mean, rstd = (t if t is None else t.float().contiguous() for t in (mean, rstd))
    rows, inputs, samples = rows.contiguous(), inputs.contiguous(), samples.contiguous()
    return noise.noisy_batch(
        x, rows, inputs, samples, key.contiguous(), sigma, low, high, mean, rstd, dtype,
        channels_last,
    )  # fmt: skip


def vote_count(
    values: Tensor, rows: Tensor, mode: str, thresholds: Tensor | None, inputs: int
) -> Tensor:
    """Counts of the values of each input, see ``kernels.votes``."""
    return votes.vote_count(values, rows.contiguous(), mode, thresholds, inputs)


def _dry() -> bool:
    """Whether launches are recorded instead of executed; see ``benchmarking.gpu.dry_driver``."""
    return not torch.cuda.is_available() and unavailable() is None


def _extent(t: Tensor) -> int:
    """Elements between the first and the last of one sample."""
    return sum((size - 1) * step for size, step in zip(t.shape[1:], t.stride()[1:], strict=True))


def _alike(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype, as matrix units want them."""
    if x.dtype == d.dtype:
        return x, d
    return x.float(), d.float()


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape[0], dtype=torch.float32, device=like.device)
