"""What a model would do in its next pass, as far as Python objects decide it.

A captured pass runs none of the model's code again, so whatever that code reads must be the same:
modules and their hooks, attributes of every kind, what functions close over, PyTorch's switches.
Values of parameters and buffers may change, since a replay reads them where they lie.
"""

from __future__ import annotations

import functools
import os
import types
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from gradood.gradients.precision import switches
from gradood.products import CHOSEN

#: Containers and objects inside one another, counted from a module's attribute.
_DEPTH = 4
_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_PARTS = ("_parameters", "_buffers", "_modules")  # of a module, read on their own


class Same:
    """Equal for one object alone, and for nothing once that is gone: its address may come again."""

    __slots__ = ("_number", "_object")

    def __init__(self, value: object) -> None:
        self._number = id(value)
        try:
            self._object: Any = weakref.ref(value)
        except TypeError:  # kept alive instead
            self._object = lambda: value

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return NotImplemented
        mine = self._object()
        return mine is not None and mine is other._object()


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """A key that changes with anything that the model's passes may depend on."""
    found: list[Any] = [*_surroundings()]
    for name, module in model.named_modules():
        found += (name, Same(module), Same(type(module).forward))
        seen = {id(module)}
        for key, value in vars(module).items():
            if key not in _PARTS and not (key[0] == "_" and not value and "hooks" in key):
                found += (key, *_described(value, _DEPTH, seen))
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            found += (key, *_described(tensor, 0, seen))
    return tuple(found)


def _surroundings() -> Iterator[Any]:
    """PyTorch's switches, and hooks of all modules."""
    yield from (CHOSEN.get(), switches(), os.environ.get("GRADOOD_BACKEND"))
    yield from (torch.get_default_dtype(), torch.is_deterministic_algorithms_warn_only_enabled())
    yield from (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.enabled)
    yield from (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    cuda = torch.backends.cuda
    yield from (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled())
    yield from (cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled())
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks"):
        yield from map(Same, getattr(modules, name, {}).values())


def _described(value: Any, depth: int, seen: set[int]) -> Iterator[Any]:
    if isinstance(value, _VALUES):
        yield (type(value), value)
        return
    yield Same(value) if not isinstance(value, types.MethodType) else Same(value.__func__)
    if isinstance(value, Tensor):
        yield from _place(value)
        return
    if depth == 0 or id(value) in seen or isinstance(value, (nn.Module, type, types.ModuleType)):
        return
    seen.add(id(value))
    for part in _parts(value):
        yield from _described(part, depth - 1, seen)


def _place(t: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies and how; what is in it may change."""
    try:
        address = t.data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, or without memory
        address = id(t)
    strides = t.stride() if t.layout == torch.strided else None
    return (address, tuple(t.shape), strides, t.dtype, t.device, t.requires_grad)


def _parts(value: Any) -> Iterator[Any]:
    """What an object is made of."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (key, item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.items())
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, types.FunctionType):
        yield value.__code__
        yield from value.__defaults__ or ()
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # empty so far
                yield None
    elif hasattr(value, "__dict__"):
        yield from vars(value).items()
