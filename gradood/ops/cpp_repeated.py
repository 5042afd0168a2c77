"""Kernels that run again on tensors that lie alike, with nothing to prepare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradood.ops.cpp_requests import Request


class Repeated(NamedTuple):
    """A kernel to run again on tensors that lie alike, wherever they are."""

    again: Callable[..., bool]
    kernel: Callable[..., None]
    numbers: tuple[float, ...]
    #: Which of the numbers are addresses, and of which tensors; see ``again`` in ``module.cpp``.
    slots: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(
        cls,
        kernels: ModuleType,
        request: Request,
        given: Sequence[tuple[int, Tensor] | None],
    ) -> Repeated:
        """What was asked for, of tensors like those ``given``, in these places from now on.

        These are x, d, the operands (None for one that is missing) and the gradient that is passed
        on, if there is one; they begin where those of the request do, and may be shaped otherwise.
        """
        numbered = zip(request.places(), given, strict=False)
        found = [(number, *known) for number, known in numbered if known is not None]
        slots = tuple((number, i, t.dtype, t.layout, t.shape, t.stride()) for number, i, t in found)
        kernel = getattr(kernels, request.prepared.kernel)
        return cls(kernels.again, kernel, request.numbers(), slots)

    def run(self, tensors: tuple[Any, ...], weight: int, bias: int) -> bool:
        """Run it unless a tensor lies otherwise; whether it ran.

        ``weight`` and ``bias`` are addresses of norms ``[N]``, 0 for the bias if it is not wanted.
        """
        last = (weight, bias, torch.get_num_threads())
        return self.again(self.kernel, self.numbers, self.slots, tensors, last)
