"""What a launcher works out once for tensors that lie alike, and launches that skip what is known.

A launch in Triton looks at every argument again to find the compiled kernel, and a launcher works
out tiles and strides; for the forty layers of a network the CPU then takes longer than the GPU.
Both depend on sizes, strides, types and the alignment of pointers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from gradood.kernels.launch import INTERPRETING
from gradood.products import CHOSEN

#: Layouts that a launcher remembers; a sequence may have any length.
KEPT = 1024
#: Bytes to which Triton's compiler may align a pointer.
_ALIGNED = 16
#: Of a program, where fewer spill.
_MOST_WARPS = 32
#: Before 3.3, compiled kernels are not told the constants that they were compiled for.
_TOLD_CONSTANTS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)

P = ParamSpec("P")
R = TypeVar("R")
_KNOWN: list[dict[Any, Any]] = []


class Launch:
    """A kernel, its grid, and all arguments but the tensors, which come first."""

    __slots__ = ("_compiled", "_constants", "_grid", "_kernel", "_numbers", "_told")

    def __init__(
        self, kernel: Any, programs: int, numbers: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        self._kernel, self._grid = kernel, (programs, 1, 1)
        self._numbers, self._constants = numbers, constants
        self._compiled: dict[Any, Any] = {}
        self._told = numbers
        if _TOLD_CONSTANTS and not INTERPRETING:
            names = kernel.arg_names
            self._told += tuple(constants[name] for name in names if name in constants)

    def __call__(self, *tensors: Tensor) -> None:
        """Launch on the current device."""
        if INTERPRETING:
            self._kernel[self._grid](*tensors, *self._numbers, **self._constants)
            return
        aligned = [t.data_ptr() % _ALIGNED for t in tensors]
        types = [t.dtype for t in tensors]
        key = (driver.active.get_current_device(), *aligned, *types)
        compiled = self._compiled.get(key)
        if compiled is None:
            self._compiled[key] = self._first(tensors)
        else:
            compiled[self._grid](*tensors, *self._told)

    def _first(self, tensors: tuple[Tensor, ...]) -> Any:
        """Compile and launch; with other options if threads spill registers.

        What spills differs by GPU and by version of the compiler. Programs store what they compute
        and read nothing of it, so that another launch does no harm.
        """
        best = None
        for options in self._options():
            constants = self._constants | options
            compiled = self._kernel[self._grid](*tensors, *self._numbers, **constants)
            if compiled is None or not compiled.n_spills:
                return compiled
            if best is None or compiled.n_spills < best.n_spills:
                best = compiled
        if best is not None and best is not compiled:
            best[self._grid](*tensors, *self._told)
        return best

    def _options(self) -> Iterator[dict[str, int]]:
        """As the table says; then more warps, and so fewer numbers a thread, or fewer stages."""
        first, stages = self._constants["num_warps"], self._constants.get("num_stages", 1)
        for fewer in range(stages):
            warps = first
            while warps <= _MOST_WARPS:
                yield {"num_warps": warps} | ({"num_stages": stages - fewer} if fewer else {})
                warps *= 2


def prepared(
    prepare: Callable[Concatenate[Tensor, Tensor, P], R],
) -> Callable[Concatenate[Tensor, Tensor, P], R]:
    """Call ``prepare`` once for two tensors that lie alike; it sees tensors without memory.

    What else it is given is part of what is remembered, and so are the current device and the
    precision of products.
    """
    known: dict[Any, R] = {}
    _KNOWN.append(known)

    @wraps(prepare)
    def find(x: Tensor, d: Tensor, /, *rest: P.args, **options: P.kwargs) -> R:
        key = (
            *(x.shape, x.stride(), x.dtype, d.shape, d.stride(), d.dtype),
            *(rest, CHOSEN.get(), None if INTERPRETING else driver.active.get_current_device()),
        )
        found = known.get(key)
        if found is None:
            if len(known) >= KEPT:
                known.clear()
            found = known[key] = prepare(_lying_as(x), _lying_as(d), *rest, **options)
        return found

    return find


def forget() -> None:
    """Work everything out anew, as the launch table changed."""
    for known in _KNOWN:
        known.clear()


Arrange = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def arranged(arrange: Arrange, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Arrange | None]:
    """Both tensors as a kernel reads them; and ``arrange`` itself, if that takes a copy.

    A view begins where its tensor does, so that a kernel may be given either.
    """
    found = arrange(x, d)
    views = all(map(_begins_at, found, (x, d)))
    return *found, None if views else arrange


def _begins_at(view: Tensor, t: Tensor) -> bool:
    same = view.untyped_storage()._cdata == t.untyped_storage()._cdata
    return bool(same and view.storage_offset() == t.storage_offset())


def _lying_as(t: Tensor) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
