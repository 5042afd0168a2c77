"""The least time that the norms can take on a GPU: its peak rates against operations and bytes.

``max(2 · multiply-adds / peak, bytes / bandwidth)`` for every operator call, summed. Peak rates are
those of the manufacturers' data sheets, dense; float32 operands are multiplied in three bfloat16
products. Computed, never measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradood.benchmarking.gpu.operator_calls import Shape


class Peaks(NamedTuple):
    """Bytes a second from memory, and bfloat16 operations a second on tensor cores."""

    bandwidth: float
    operations: float


#: By a part of the name that PyTorch gives the device; the first match counts.
DEVICES = {
    "B200": Peaks(8.0e12, 2250e12),
    "H200": Peaks(4.8e12, 989e12),
    "H100 PCIe": Peaks(2.0e12, 756e12),
    "H100": Peaks(3.35e12, 989e12),
    "A100-SXM4-80GB": Peaks(2.039e12, 312e12),
    "A100": Peaks(1.555e12, 312e12),
    "MI300X": Peaks(5.3e12, 1307e12),
}
#: Stand-ins for dry runs, where no device has a name.
TARGET_DEVICES = {"sm_80": "A100-SXM4-80GB", "sm_90": "H100", "sm_100": "B200", "gfx942": "MI300X"}


def peaks(device: str) -> Peaks | None:
    """The peak rates of a device by its name, if they are known."""
    return next((found for part, found in DEVICES.items() if part in device), None)


def least_seconds(operator: str, arguments: tuple[Any, ...], device: Peaks) -> float:
    """The least time of one operator call on ``x`` and ``d`` of its arguments."""
    tensors = [a for a in arguments[:2] if isinstance(a, Tensor)]
    passes = 3 if tensors[-1].dtype == torch.float32 else 1
    moved = sum(t.numel() * t.element_size() for t in tensors)
    count = _PRODUCTS.get(operator)
    products = count(*arguments) if count is not None else 0
    return max(2 * products * passes / device.operations, moved / device.bandwidth)


def least_milliseconds(
    calls: Sequence[tuple[str, tuple[Any, ...]]], batch: int, dtype: torch.dtype, device: Peaks
) -> float:
    """The least time of the recorded calls of one pass, see ``operator_calls.record``."""
    total = 0.0
    for operator, arguments in calls:
        made = tuple(
            a.tensor(batch, dtype) if i < 2 and isinstance(a, Shape) else a
            for i, a in enumerate(arguments)
        )
        total += least_seconds(operator, made, device)
    return 1e3 * total


def _linear(x: Tensor, d: Tensor, *_: Any) -> int:
    (samples, tokens, inputs), outputs = x.shape, d.shape[2]
    if tokens == 1:
        return samples * (inputs + outputs)
    return samples * min(tokens**2 * (inputs + outputs) // 2, tokens * inputs * outputs)


def _conv(x: Tensor, d: Tensor, kernel: Any, *options: Any) -> int:
    from gradood.ops import triton_backend

    groups = options[3]
    direct = d[0].numel() * x.shape[1] // groups * prod(kernel)
    kind = triton_backend.algorithm("conv_sqnorm", x, d, kernel, *options)
    if kind == "pointwise":
        return _linear(x.flatten(2).transpose(1, 2), d.flatten(2).transpose(1, 2))
    if kind == "shift_gram":
        pixels, tokens = x[0, 0].numel(), d[0, 0].numel()
        return int(len(x)) * (pixels**2 * x.shape[1] + tokens**2 * d.shape[1]) // 2
    return int(len(x)) * direct if kind == "direct" else 0


_PRODUCTS: dict[str, Callable[..., int]] = {"linear_sqnorm": _linear, "conv_sqnorm": _conv}
