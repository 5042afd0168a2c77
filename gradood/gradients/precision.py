"""float32 numbers are multiplied as such inside a pass, whatever PyTorch is set to.

By default PyTorch lets cuDNN round the operands of float32 convolutions to TF32, ten bits of
mantissa: norms change by a percent and more. The switches belong to the process, not to a thread,
so the last pass that ends puts them back; meanwhile other threads multiply exactly, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch

from gradood.errors import InputError
from gradood.products import products

#: ``"exact"`` multiplies float32 in full; ``"fast"`` leaves PyTorch's switches as they are, and
#: lets norms be made of TF32 products where a GPU has them.
PRECISIONS = ("exact", "fast")

_LOCK = threading.Lock()
_BEFORE: list[list[Any]] = []
_HOLDERS: list[int] = []

#: From PyTorch 2.9, a switch for each library and kind of operator; reading never fails.
_KINDS = [(library, kind) for library in ("cuda", "mkldnn") for kind in ("matmul", "conv", "rnn")]


@contextmanager
def multiplied(precision: str) -> Iterator[None]:
    """Multiply float32 operands as ``precision`` says inside the block.

    Raises:
        InputError: There is no such precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is not known; use {' or '.join(PRECISIONS)}")
    with products("fast") if precision == "fast" else _exactly():
        yield


def switches() -> tuple[Any, ...]:
    """The state of all switches, for what depends on them."""
    return tuple(_read())


@contextmanager
def _exactly() -> Iterator[None]:
    holder = threading.get_ident()
    with _LOCK:
        if not _HOLDERS:
            _BEFORE.append(_read())
            _switch_off()
        _HOLDERS.append(holder)
    try:
        yield
    finally:
        with _LOCK:
            _HOLDERS.remove(holder)
            if not _HOLDERS:
                _write(_BEFORE.pop())


@cache
def _switches() -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    return _older() + _newer()


def _older() -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """The switches of PyTorch before 2.9: they must agree with the newer, or reading them fails."""
    return [
        (torch._C._get_cudnn_allow_tf32, torch._C._set_cudnn_allow_tf32),
        (torch._C._get_cublas_allow_tf32, torch._C._set_cublas_allow_tf32),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    ]


def _newer() -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    read = getattr(torch._C, "_get_fp32_precision_getter", None)
    if read is None:
        return []
    write = torch._C._set_fp32_precision_setter

    def of(library: str, kind: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
        return lambda: read(library, kind), lambda value: write(library, kind, value)

    return [of(library, kind) for library, kind in _KINDS]


def _read() -> list[Any]:
    found: list[Any] = []
    for read, _ in _switches():
        value = None
        with suppress(RuntimeError):  # set by the newer switches in a way the older cannot say
            value = read()
        found.append(value)
    return found


def _write(values: list[Any]) -> None:
    for (_, write), value in zip(_switches(), values, strict=True):
        if value is not None:
            write(value)


def _switch_off() -> None:
    older = [False, False, "highest"]
    _write([*older, *["ieee"] * (len(_switches()) - len(older))])
