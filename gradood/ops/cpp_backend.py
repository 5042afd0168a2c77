"""Every operator in C++ on the CPU: describe the tensors, choose the algorithm, call ``_cpu``.

Formulas as in ``reference.py``; float32, bfloat16 and float16 inputs in any layout, sums in
float32. The kernels (``csrc/``) run on PyTorch's own threads, as many as ``torch.get_num_threads``.
``GRADOOD_CPU_ISA=baseline|avx2|avx512|amx`` forces an instruction set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gradood.errors import BackendError, GradoodError
from gradood.ops import choice, cpp_requests as requests, noise_cpp, patches
from gradood.ops.addresses import DTYPES, address, address_of_any, require_fit
from gradood.ops.cpp_repeated import Repeated
from gradood.ops.cpp_requests import REQUESTS, Request

NAME = "cpp"
OPERATORS = (
    *("bias_sqnorm", "linear_sqnorm", "conv_sqnorm", "embedding_sqnorm"),
    *("batch_norm_sqnorm", "layer_norm_sqnorm", "group_norm_sqnorm"),
    *("batch_norm_backward_sqnorm", "layer_norm_backward_sqnorm"),
    *("channel_sums", "batch_norm_sums"),
    *("noisy_batch", "grid_batch", "vote_count"),
)
TAKES_OVER = ("batch_norm_sums", "batch_norm_backward_sqnorm", "layer_norm_backward_sqnorm")

_kernels: ModuleType | None
try:
    from gradood import _cpu  # type: ignore[attr-defined]  # compiled, and private

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


def reject(op: str, *args: Any) -> str | None:
    """Return why this backend cannot serve a call, or None."""
    for place, t in enumerate(args):
        if not isinstance(t, Tensor):
            break  # tensors come first
        if t.device.type != "cpu":
            return f"tensor on {t.device}"
        if op in ("noisy_batch", "grid_batch", "vote_count"):
            continue
        if place < 2 and t.dtype not in DTYPES and t.is_floating_point():
            return f"{t.dtype} is left to PyTorch"
    if op in ("noisy_batch", "grid_batch", "vote_count"):
        return noise_cpp.reject(op, *args)
    if op == "conv_sqnorm" and args[0].dim() > 5:
        return "more than three spatial dimensions"
    if op == "batch_norm_sums" and not _is_written(args[0]):
        return "the kernel writes dense float32 alone"
    if op.endswith("backward_sqnorm") and torch.float16 in (args[0].dtype, args[1].dtype):
        return "the kernel writes no float16"
    return None


def is_own_failure(error: Exception) -> bool:
    """Whether PyTorch may do what failed: a kernel refused, or an older build lacks it."""
    return not isinstance(error, (GradoodError, MemoryError, torch.OutOfMemoryError))


def _is_written(x: Tensor) -> bool:
    dense = x.dim() > 1 and (x.is_contiguous() or x.movedim(1, -1).is_contiguous())
    return dense and x.dtype == torch.float32


def algorithm(op: str, *args: object) -> str:
    """Name the algorithm that serves a call."""
    if op not in ("linear_sqnorm", "conv_sqnorm"):
        return "fused"
    x, d, *geometry = args
    assert isinstance(x, Tensor) and isinstance(d, Tensor)
    if op == "linear_sqnorm":
        return choice.linear(x.shape[1], x.shape[2], d.shape[2], _costs())
    kernel_size, stride, padding, dilation, groups = geometry[:5]
    if patches.cuts(x, d, kernel_size, stride, padding, dilation, groups):  # type: ignore[arg-type]
        return f"patches, {algorithm('linear_sqnorm', *patches.split(x, d, kernel_size))}"  # type: ignore[arg-type]
    shapes = (x.shape[1:], d.shape[1:])
    return choice.conv(*shapes, kernel_size, stride, padding, groups, _costs(), dilation)  # type: ignore[arg-type]


def _costs() -> choice.Costs:
    return choice.CPP[_instruction_set]


def bias_sqnorm(d: Tensor) -> Tensor:
    """See ``reference.bias_sqnorm``."""
    require_fit(d.dim() == 3, "bias_sqnorm", d)
    if d.numel() == 0:
        return _zeros(d.shape[0])
    norm = _new(d.shape[0])
    _call("bias", *_describe(d), _address(norm, d.shape[0]))
    return norm


def channel_sums(a: Tensor) -> Tensor:
    """See ``reference.channel_sums``."""
    require_fit(a.dim() == 3, "channel_sums", a)
    size = (a.shape[0], 2, a.shape[1])
    sums = torch.empty(size, dtype=torch.float32, device="cpu")
    if a.numel() == 0:
        return sums.zero_()
    _call("channel_sums", *_describe(a), address(sums, torch.float32, size))
    return sums


def batch_norm_sums(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See ``reference.batch_norm_sums``."""
    samples, channels = x.shape[:2]
    size, positions = (samples, 2, channels), prod(x.shape[2:])
    out, sums = torch.empty_like(x), torch.empty(size, dtype=torch.float32, device="cpu")
    if x.numel() == 0:
        return out, sums.zero_()
    inner = (positions, 1) if x.is_contiguous() else (1, channels)
    layout = (DTYPES[x.dtype], samples, channels, positions, channels * positions, *inner)
    statistics = [0 if t is None else _address(t, channels) for t in (mean, variance, weight, bias)]
    results = (address_of_any(out), address(sums, torch.float32, size))
    _call("batch_norm_sums", address_of_any(x), *layout, *statistics, eps, *results)
    return out, sums


def linear_sqnorm(x: Tensor, d: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """See ``reference.linear_sqnorm``."""
    if _empty(x, d):
        return _zeros(d.shape[0]), bias_sqnorm(d.transpose(1, 2)) if bias else _zeros(0)
    return _run(requests.linear(_instruction_set, x, d, bias))


def conv_sqnorm(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bias: bool,
    kind: str | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``reference.conv_sqnorm``; ``kind`` forces an algorithm, for tests and benchmarks."""
    if _empty(x, d):
        return _zeros(d.shape[0]), bias_sqnorm(d.flatten(2)) if bias else _zeros(0)
    return _run(
        requests.conv(
            _instruction_set, x, d, kernel_size, stride, padding, dilation, groups, bias, kind
        )
    )


def batch_norm_sqnorm(
    x: Tensor, d: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See ``reference.batch_norm_sqnorm``."""
    return _run(requests.batch_norm(_instruction_set, x, d, mean, variance, eps))


def batch_norm_backward_sqnorm(
    x: Tensor, d: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.batch_norm_backward_sqnorm``."""
    return _run_and_pass_on(
        requests.batch_norm_backward(_instruction_set, x, d, mean, variance, weight, eps)
    )


def layer_norm_sqnorm(x: Tensor, d: Tensor, eps: float, rms: bool) -> tuple[Tensor, Tensor]:
    """See ``reference.layer_norm_sqnorm``."""
    return _run(requests.layer_norm(_instruction_set, x, d, eps, rms))


def layer_norm_backward_sqnorm(
    x: Tensor, d: Tensor, scale: Tensor, eps: float, rms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.layer_norm_backward_sqnorm``."""
    return _run_and_pass_on(requests.layer_norm_backward(_instruction_set, x, d, scale, eps, rms))


def group_norm_sqnorm(x: Tensor, d: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """See ``reference.group_norm_sqnorm``."""
    return _run(requests.group_norm(_instruction_set, x, d, groups, eps))


def embedding_sqnorm(indices: Tensor, d: Tensor, padding_idx: int) -> Tensor:
    """See ``reference.embedding_sqnorm``."""
    require_fit(d.dim() == 3 and indices.shape == d.shape[:2], "embedding_sqnorm", indices, d)
    if d.numel() == 0:
        return _zeros(d.shape[0])
    indices = indices.to(torch.int64).contiguous()
    norm = _new(d.shape[0])
    places = address(indices, torch.int64, (d.shape[0], d.shape[1]))
    _call("embedding", places, *_describe(d), padding_idx, _address(norm, d.shape[0]))
    return norm


def noisy_batch(*args: Any) -> Tensor:
    """See ``reference.noisy_batch``."""
    assert _kernels is not None
    return noise_cpp.noisy_batch(_kernels, *args)


def grid_batch(*args: Any) -> Tensor:
    """See ``grid.grid_batch``."""
    assert _kernels is not None
    return noise_cpp.grid_batch(_kernels, *args)


def vote_count(*args: Any) -> Tensor:
    """See ``reference.vote_count``."""
    assert _kernels is not None
    return noise_cpp.vote_count(_kernels, *args)


def prepare(op: str, *args: Any) -> Request | None:
    """What an operator call asks a kernel for, if it is one kernel's."""
    found = REQUESTS.get(op)
    return None if found is None or _empty(*args[:2]) else found(_instruction_set, *args)


def repeat(request: Request, given: Sequence[tuple[int, Tensor] | None]) -> Repeated:
    """See ``Repeated.of``."""
    assert _kernels is not None
    return Repeated.of(_kernels, request, given)


def _empty(x: Tensor, d: Tensor) -> bool:
    return x.numel() == 0 or d.numel() == 0


def _zeros(samples: int) -> Tensor:
    return _new(samples).zero_()


def _new(samples: int) -> Tensor:
    return torch.empty(samples, dtype=torch.float32, device="cpu")


def _address(t: Tensor, count: int) -> int:
    """Of numbers of which there are so many: statistics, or norms to be."""
    return address(t, torch.float32, (count,))


def _describe(t: Tensor) -> tuple[int, ...]:
    return (address_of_any(t), DTYPES[t.dtype], *t.shape, *t.stride())


def _call(kernel: str, *arguments: float) -> None:
    getattr(_kernels, kernel)(*arguments, torch.get_num_threads())


def _results(d: Tensor, bias: bool) -> tuple[Tensor, Tensor, int, int]:
    """Both norms to be, and their addresses."""
    samples = d.shape[0]
    weight, bias_norm = _new(samples), _new(samples if bias else 0)
    return weight, bias_norm, _address(weight, samples), _address(bias_norm, samples) if bias else 0


def _run(request: Request) -> tuple[Tensor, Tensor]:
    """Both norms; no position, no gradient."""
    x, d = request.x, request.d
    if _empty(x, d):
        return _zeros(d.shape[0]), _zeros(d.shape[0])
    weight, bias, *results = _results(d, request.bias)
    _call(request.prepared.kernel, *request.numbers(), *results)
    return weight, bias


def _run_and_pass_on(request: Request) -> tuple[Tensor, Tensor, Tensor]:
    assert request.passed_on is not None
    return *_run(request), request.passed_on
