"""Choose the backend that serves an operator call, and remember what was chosen.

A backend is a module with a function for each of its ``OPERATORS`` and

* ``NAME``; ``unavailable()``: why it cannot be used on this machine, or None;
* ``reject(op, *args)``: why it cannot serve this call, or None; ``algorithm(op, *args)``: how it
  serves it, in a word;
* perhaps ``TAKES_OVER``: operators by which it gains over PyTorch's own backward pass;
* perhaps ``prepare(op, *args)``: what the call asks a kernel for, and ``repeat(request,
  given)``, to run that again;
* perhaps ``is_own_failure(error)``: whether the next backend may do what failed here.
"""

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

import torch
from torch import Tensor

from gradood.errors import BackendError, first_line

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


class _State(threading.local):
    def __init__(self) -> None:
        self.traces: list[list[Served]] = []
        #: What ``GRADOOD_BACKEND`` says, inside ``settled``.
        self.forced: str | None = None


_STATE = _State()


@contextmanager
def settled() -> Iterator[None]:
    """Read the environment once for all operators of this thread inside the block."""
    before, _STATE.forced = _STATE.forced, os.environ.get("GRADOOD_BACKEND", "auto")
    try:
        yield
    finally:
        _STATE.forced = before


def _forced() -> str:
    return _STATE.forced or os.environ.get("GRADOOD_BACKEND", "auto")


@contextmanager
def tracing() -> Iterator[list[Served]]:
    """Collect every operator call that this thread makes inside the block."""
    served: list[Served] = []
    _STATE.traces.append(served)
    try:
        yield served
    finally:
        _STATE.traces.remove(served)


#: Operators that a backend failed to compile, load or launch on a device, and how it failed.
_LEFT: dict[tuple[str, str, torch.device], str] = {}


def dispatch(op: str, *args: Any) -> Any:
    """Run ``op``, whose first argument is a tensor, on the first backend that accepts the call.

    A backend that compiles at run time may fail at that: it is left for this operator on this
    device, and the next one serves the call and those that follow.
    """
    device = args[0].device
    for backend in _offering(op, device):
        try:
            reason = backend.reject(op, *args)
            if reason is None:
                result = getattr(backend, op)(*args)
                if _STATE.traces:
                    served = Served(op, backend.NAME, backend.algorithm(op, *args))
                    _STATE.traces[-1].append(served)
                return result
        except Exception as error:
            if not getattr(backend, "is_own_failure", _never)(error):
                raise
            leave(backend.NAME, op, device, error)
        else:
            _log_once(f"backend {backend.NAME} cannot serve {op}: {reason}")
    raise BackendError(f"no backend serves {op} on {device}; unset GRADOOD_BACKEND")


def prepare(op: str, *args: Any) -> Any:
    """What the backend that serves a call would ask a kernel for, and what repeats it.

    A ``Request`` of ``cpp_requests`` and ``cpp_backend.repeat``; None where there is none.
    """
    for backend in _offering(op, args[0].device):
        if backend.reject(op, *args) is None:
            request = backend.prepare(op, *args) if hasattr(backend, "prepare") else None
            return None if request is None else (request, backend.repeat)
    return None


def settings(device: str) -> tuple[Any, ...]:
    """What decides, beside the tensors, which backend and which kernel serves a call."""
    forced = _forced()
    sets = (getattr(b, "instruction_set", str)() for b in _candidates(device, forced))
    return (forced, len(_LEFT), *sets)


def _offering(op: str, device: torch.device) -> Iterator[ModuleType]:
    """The backends that have an operator and did not fail at it, best first."""
    for backend in _candidates(device.type, _forced()):
        if op in backend.OPERATORS and not (_LEFT and (backend.NAME, op, device) in _LEFT):
            yield backend


def leave(backend: str, op: str, device: torch.device, error: BaseException) -> None:
    """Have the next backend serve an operator from now on, and say why, once."""
    if (backend, op, device) in _LEFT:
        return
    _LEFT[backend, op, device] = reason = told(error)
    _LOG.warning(
        "backend %s fails at %s on %s and is left for it, the next one serves: %s",
        *(backend, op, device, reason),
    )


def left() -> dict[str, str]:
    """Why, by backend, operator and device, a backend was left while the program ran."""
    return {f"{name}, {op}, {device}": reason for (name, op, device), reason in _LEFT.items()}


def told(error: BaseException) -> str:
    """An error and what caused it, in one line."""
    said = [f"{type(e).__name__}: {first_line(e)}" for e in (error, error.__cause__) if e]
    return "; because of ".join(said)


def _never(error: BaseException) -> bool:
    return False


def offers(op: str, tensor: Tensor) -> bool:
    """Whether the first choice among a tensor's backends gains from taking over a backward pass."""
    first = _candidates(tensor.device.type, _forced())[0]
    failed = _LEFT and (first.NAME, op, tensor.device) in _LEFT
    return not failed and op in getattr(first, "TAKES_OVER", ())


@cache
def load(name: str) -> tuple[ModuleType | None, str | None]:
    """Import the backend ``name``: the module, or the reason why it cannot be used."""
    try:
        module = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        if error.name == _MODULES[name]:
            return None, "not part of this version of gradood"
        return None, f"not installed ({error})"
    except Exception as error:  # whatever another version of a package makes of it
        return None, f"does not load ({told(error)})"
    try:
        reason = module.unavailable()
    except Exception as error:
        reason = f"fails on this machine ({told(error)})"
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
