"""Every operator in C++ on the CPU: describe the tensors, choose the algorithm, call ``_cpu``.

Formulas as in ``reference.py``; float32, bfloat16 and float16 inputs in any layout, sums in
float32. The kernels (``csrc/``) run on PyTorch's own threads, as many as ``torch.get_num_threads``.
``GRADOOD_CPU_ISA=baseline|avx2|avx512|amx`` forces an instruction set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gradood.errors import BackendError
from gradood.ops import choice, noise_cpp

NAME = "cpp"

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_kernels: ModuleType | None
try:
    from gradood import _cpu

    _kernels = _cpu
except ImportError:
    _kernels = None

_instruction_set = ""


def unavailable() -> str | None:
    """Return why this backend cannot be used on this machine, or None."""
    if _kernels is not None:
        return None
    note = Path(__file__).parents[1] / "_cpu_missing.txt"
    return note.read_text().strip() if note.exists() else "the C++ kernels were not built"


def instruction_set() -> str:
    """Return the name of the instruction set whose kernels are in use."""
    return _instruction_set


def use_instruction_set(name: str) -> str:
    """Use the kernels for one instruction set, or for ``"auto"`` the best; return its name.

    Raises:
        BackendError: The machine or this build lacks it.
    """
    global _instruction_set
    if _kernels is None:
        raise BackendError(f"instruction set {name}: {unavailable()}")
    try:
        _instruction_set = str(_kernels.select(name))
    except ValueError as error:
        raise BackendError(
            f"GRADOOD_CPU_ISA={error}; unset it, or use one that this machine has"
        ) from None
    return _instruction_set


if _kernels is not None:
    use_instruction_set(os.environ.get("GRADOOD_CPU_ISA", "auto"))


def reject(op: str, *args: object) -> str | None:
    """Return why this backend cannot serve a call, or None."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    for t in tensors:
        if t.device.type != "cpu":
            return f"tensor on {t.device}"
    if op in ("noisy_batch", "vote_count"):
        return noise_cpp.reject(op, *args)
    for t in tensors[:2]:
        if t.is_floating_point() and t.dtype not in _DTYPES:
            return f"{t.dtype} is left to PyTorch"
    if op == "conv_sqnorm" and tensors[0].dim() > 5:
        return "more than three spatial dimensions"
    return None


def algorithm(op: str, *args: object) -> str:
    """Name the algorithm that serves a call."""
    if op == "linear_sqnorm":
        x, d = args[:2]
        assert isinstance(x, Tensor) and isinstance(d, Tensor)
        return choice.linear(x.shape[1], x.shape[2], d.shape[2], _costs())
    if op == "conv_sqnorm":
        x, d, kernel_size, stride, padding, _, groups = args[:7]
        assert isinstance(x, Tensor) and isinstance(d, Tensor)
        shapes = (x.shape[1:], d.shape[1:])
        return choice.conv(*shapes, kernel_size, stride, padding, groups, _costs())  # type: ignore[arg-type]
    return "fused"


def _costs() -> choice.Costs:
    return choice.CPP[_instruction_set]


def bias_sqnorm(d: Tensor) -> Tensor:
    """See ``reference.bias_sqnorm``."""
    if d.numel() == 0:
        return torch.zeros(d.shape[0])
    norm = torch.empty(d.shape[0])
    _call("bias", *_describe(d), norm.data_ptr())
    return norm


def linear_sqnorm(x: Tensor, d: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """See ``reference.linear_sqnorm``."""
    if _empty(x, d):
        return _zeros(d.shape[0]), bias_sqnorm(d.transpose(1, 2)) if bias else _zeros(0)
    kind = algorithm("linear_sqnorm", x, d)
    if kind == "outer":
        return _results(d, bias, lambda w, b: _call("outer", *_describe(x), *_describe(d), w, b))
    return _convolution(kind, x.transpose(1, 2), d.transpose(1, 2), (1,), (1,), (0,), (1,), 1, bias)


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
    if _empty(x, d):
        return _zeros(d.shape[0]), bias_sqnorm(d.flatten(2)) if bias else _zeros(0)
    kind = algorithm("conv_sqnorm", x, d, kernel_size, stride, padding, dilation, groups)
    if kind == "pointwise":
        kind = choice.linear(d[0, 0].numel(), x.shape[1], d.shape[1], _costs(), pixels=True)
    return _convolution(kind, x, d, kernel_size, stride, padding, dilation, groups, bias)


def batch_norm_sqnorm(x: Tensor, d: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """See ``reference.batch_norm_sqnorm``."""
    mean, rstd = mean.float().contiguous(), rstd.float().contiguous()
    statistics = (mean.data_ptr(), rstd.data_ptr())
    return _fused("batch_norm", x, d, *statistics)


def layer_norm_sqnorm(x: Tensor, d: Tensor, eps: float, rms: bool) -> tuple[Tensor, Tensor]:
    """See ``reference.layer_norm_sqnorm``."""
    return _fused("layer_norm", x, d, eps, int(rms))


def group_norm_sqnorm(x: Tensor, d: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """See ``reference.group_norm_sqnorm``."""
    return _fused("group_norm", x, d, groups, eps)


def embedding_sqnorm(indices: Tensor, d: Tensor, padding_idx: int) -> Tensor:
    """See ``reference.embedding_sqnorm``."""
    if d.numel() == 0:
        return _zeros(d.shape[0])
    indices = indices.to(torch.int64).contiguous()
    norm = torch.empty(d.shape[0])
    _call("embedding", indices.data_ptr(), *_describe(d), padding_idx, norm.data_ptr())
    return norm


def noisy_batch(*args: Any) -> Tensor:
    """See ``reference.noisy_batch``."""
    assert _kernels is not None
    return noise_cpp.noisy_batch(_kernels, *args)


def vote_count(*args: Any) -> Tensor:
    """See ``reference.vote_count``."""
    assert _kernels is not None
    return noise_cpp.vote_count(_kernels, *args)


def _empty(x: Tensor, d: Tensor) -> bool:
    return x.numel() == 0 or d.numel() == 0


def _zeros(samples: int) -> Tensor:
    return torch.zeros(samples)


def _describe(t: Tensor) -> tuple[int, ...]:
    return (t.data_ptr(), _DTYPES[t.dtype], *t.shape, *t.stride())


def _call(kernel: str, *arguments: float) -> None:
    getattr(_kernels, kernel)(*arguments, torch.get_num_threads())


def _results(d: Tensor, bias: bool, call: Callable[[int, int], None]) -> tuple[Tensor, Tensor]:
    """Allocate both norms and hand their addresses to ``call``."""
    weight, bias_norm = torch.empty(d.shape[0]), torch.empty(d.shape[0] if bias else 0)
    call(weight.data_ptr(), bias_norm.data_ptr() if bias else 0)
    return weight, bias_norm


def _fused(kernel: str, x: Tensor, d: Tensor, *options: float) -> tuple[Tensor, Tensor]:
    if _empty(x, d):
        return _zeros(d.shape[0]), _zeros(d.shape[0])
    tensors = (*_describe(x), *_describe(d))
    return _results(d, True, lambda w, b: _call(kernel, *tensors, *options, w, b))


def _convolution(
    kind: str,
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """Call a kernel on ``x`` ``[N, C, *S]`` and ``d`` ``[N, P, *T]``, given axes of size one."""
    missing = 3 - len(kernel_size)
    shape = (slice(None), slice(None)) + (None,) * missing
    geometry = [
        size
        for sizes, default in ((kernel_size, 1), (stride, 1), (padding, 0), (dilation, 1))
        for size in (default,) * missing + tuple(sizes)
    ]
    tensors = (*_describe(x[shape]), *_describe(d[shape]))
    kernel = "gram" if kind == "shift_gram" else "direct" if kind == "outer" else kind
    return _results(d, bias, lambda w, b: _call(kernel, *tensors, *geometry, groups, w, b))
