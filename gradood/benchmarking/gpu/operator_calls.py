"""The operator calls that the gradient norms of a model make, tensors by their shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Shape(NamedTuple):
    """What a launcher sees of a tensor."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self, samples: int | None, dtype: torch.dtype | None) -> Tensor:
        """A tensor without memory, for another number of samples, in another type."""
        size = self.size if samples is None else (samples, *self.size[1:])
        number = dtype if dtype is not None and self.dtype.is_floating_point else self.dtype
        return torch.empty_strided(size, self.stride, dtype=number, device="meta")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.namespace == "gradood":
            name = function.__name__.removesuffix(".default")
            self.calls.append((name, tuple(map(_described, args))))
        return function(*args, **(kwargs or {}))


def record(model: nn.Module, x: Tensor) -> list[tuple[str, tuple[Any, ...]]]:
    """Every operator call that the gradient norms of a batch make, tensors by their shapes."""
    from gradood import gradient_norms

    gradient_norms(model, x[:1])  # the plan is made without recording
    recorder = _Recorder()
    with recorder:
        gradient_norms(model, x, micro_batch=len(x))  # one pass, however little memory is free
    return recorder.calls


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(tuple(value.shape), value.stride(), value.dtype)
    return value
