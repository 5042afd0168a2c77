"""Choose the backend that serves an operator call, and remember what was chosen."""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor

from gradood.errors import BackendError

_LOG = logging.getLogger("gradood")

#: Backends that may serve a device, best first. ``cpp`` and ``triton`` join when they are there.
PREFERENCE = {"cpu": ("cpp", "torch"), "cuda": ("triton", "torch")}
_MODULES = {
    "cpp": "gradood.ops.cpp_backend",
    "triton": "gradood.ops.triton_backend",
    "torch": "gradood.ops.torch_backend",
}


class Served(NamedTuple):
    """One operator call as it was served: by which backend, with which algorithm."""

    operator: str
    backend: str
    algorithm: str


class _Traces(threading.local):
    def __init__(self) -> None:
        self.active: list[list[Served]] = []


_TRACES = _Traces()


@contextmanager
def tracing() -> Iterator[list[Served]]:
    """Collect every operator call that this thread makes inside the block."""
    served: list[Served] = []
    _TRACES.active.append(served)
    try:
        yield served
    finally:
        _TRACES.active.remove(served)


def dispatch(op: str, *args: Any) -> Any:
    """Run ``op``, whose first argument is a tensor, on the first backend that accepts the call."""
    for backend in _candidates(args[0].device.type, os.environ.get("GRADOOD_BACKEND", "auto")):
        reason = backend.reject(op, *args)
        if reason is None:
            if _TRACES.active:
                served = Served(op, backend.NAME, backend.algorithm(op, *args))
                _TRACES.active[-1].append(served)
            return getattr(backend, op)(*args)
        _log_once(f"backend {backend.NAME} cannot serve {op}: {reason}")
    raise BackendError(f"no backend serves {op} on {args[0].device}; unset GRADOOD_BACKEND")


def offers(op: str, tensor: Tensor) -> bool:
    """Whether the first choice among a tensor's backends gains from taking over a backward pass."""
    forced = os.environ.get("GRADOOD_BACKEND", "auto")
    return op in getattr(_candidates(tensor.device.type, forced)[0], "TAKES_OVER", ())


@cache
def load(name: str) -> tuple[ModuleType | None, str | None]:
    """Import the backend ``name``: the module, or the reason why it cannot be used."""
    try:
        module = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        if error.name == _MODULES[name]:
            return None, "not part of this version of gradood"
        return None, f"not installed ({error})"
    except ImportError as error:
        return None, f"does not load ({error})"
    reason = module.unavailable()
    return (module, None) if reason is None else (None, reason)


@cache
def _candidates(device: str, forced: str) -> tuple[ModuleType, ...]:
    if forced not in ("auto", *_MODULES):
        raise BackendError(
            f"GRADOOD_BACKEND={forced} is not a backend; use one of auto, {', '.join(_MODULES)}"
        )
    names = PREFERENCE.get(device, ("torch",)) if forced == "auto" else (forced, "torch")
    modules = []
    for name in dict.fromkeys(names):
        module, reason = load(name)
        if module is not None:
            modules.append(module)
        else:
            _log_once(f"backend {name} is not used: {reason}")
    return tuple(modules)


@cache
def _log_once(message: str) -> None:
    _LOG.info(message)
