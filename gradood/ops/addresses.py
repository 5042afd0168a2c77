"""Addresses of tensors for the C++ kernels: the only place where one leaves Python.

The kernels believe what they are told and read and write there, so everything is checked here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradood.errors import BackendError

#: Dtypes that the kernels read, each with its number there.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def address(
    t: Tensor,
    dtype: torch.dtype,
    size: tuple[int, ...],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> int:
    """The address of a dense tensor of the dtype and shape that a kernel expects.

    Raises:
        BackendError: It is not.
    """
    if (
        t.dtype != dtype
        or t.shape != size
        or not _on_cpu(t)
        or not t.is_contiguous(memory_format=memory_format)
    ):
        raise BackendError(
            f"a kernel expects {dtype} {list(size)} on the CPU, dense in memory, and was given "
            f"{t.dtype} {list(t.shape)} on {t.device} with strides {list(t.stride())}"
        )
    return _place(t)


def address_of_any(t: Tensor) -> int:
    """The address of a tensor whose dtype, sizes and strides the kernel is told.

    Raises:
        BackendError: It is elsewhere, or of a dtype that no kernel knows.
    """
    if t.dtype not in DTYPES or not _on_cpu(t):
        raise BackendError(
            f"a kernel expects float32, bfloat16 or float16 on the CPU, and was given {t.dtype} on "
            f"{t.device}"
        )
    return _place(t)


def _place(t: Tensor) -> int:
    place = t.data_ptr()
    if place % t.element_size() or (place == 0 and t.numel() > 0):
        raise BackendError(
            f"a kernel was given {t.dtype} {list(t.shape)} whose numbers lie at {place:#x}: not "
            "aligned, or freed; give it a clone"
        )
    return place


def _on_cpu(t: Tensor) -> bool:
    return t.is_cpu and t.layout is torch.strided


def require_fit(fits: bool, operator: str, *tensors: Tensor | tuple[int, ...]) -> None:
    """Refuse tensors whose sizes contradict one another.

    Raises:
        BackendError: ``fits`` is False.
    """
    if not fits:
        sizes = ", ".join(str(list(t.shape if isinstance(t, Tensor) else t)) for t in tensors)
        raise BackendError(f"{operator} has no meaning for tensors of sizes {sizes}")


def windows_fit(
    sides: Sequence[int],
    moved: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> bool:
    """Whether a kernel that is moved so often lies within the sides and their padding each time."""
    axes = zip(sides, moved, kernel_size, stride, padding, dilation, strict=True)
    return all((n - 1) * s + d * (k - 1) < side + 2 * p for side, n, k, s, p, d in axes)
