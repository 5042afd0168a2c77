"""What every launcher needs: the table of tile sizes, the precision of products, the device.

``launch_table.json`` holds the tile sizes by family, kind of number and size of the problem, with
exceptions by GPU; ``python -m benchmarks.gpu.tune`` measures and rewrites it. Nothing is tuned
while a program runs: that would break the capture of a CUDA graph and make results depend on time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.runtime import driver

from gradood.errors import BackendError, InputError
from gradood.products import CHOSEN, products

#: As Triton itself decides it, in each of its versions.
INTERPRETING: bool = (
    triton.knobs.runtime.interpret
    if hasattr(triton, "knobs")  # from 3.4
    else os.environ.get("TRITON_INTERPRET", "0") == "1"
)
if INTERPRETING:
    from gradood.kernels import interpreter

    interpreter.mend()

#: How float32 operands are multiplied. ``bf16x3`` and ``tf32x3`` split every number into two of
#: lower precision and take three products on tensor cores (errors 1e-5 and 1e-7 of a product);
#: ``ieee`` uses ordinary float32 arithmetic. Half-precision operands are multiplied exactly.
PRECISIONS = ("auto", "ieee", "tf32", "tf32x3", "bf16x3", "bf16x6")
#: Below this many products a sample, exact arithmetic costs nothing that could be noticed.
SMALL_PRODUCT = 1 << 15
_TABLE = Path(__file__).with_name("launch_table.json")


class Settings(NamedTuple):
    """Tile sizes: tokens (or inner dimension), outputs, inputs; then warps and pipeline stages."""

    tokens: int
    outputs: int
    inputs: int
    warps: int
    stages: int
    #: Whether tiles on the diagonal of a Gram matrix are loaded once.
    once: bool = False

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told."""
        return {"num_warps": self.warps, "num_stages": self.stages}


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Multiply float32 operands in this way inside the block; see ``PRECISIONS``."""
    if name not in PRECISIONS:
        raise InputError(f"precision {name!r} is not known; use one of {', '.join(PRECISIONS)}")
    with products(name):
        yield


def product_precision(dtype: torch.dtype, products: int, cancels: bool) -> str:
    """The ``input_precision`` of a dot product.

    Args:
        dtype: Of both operands.
        products: Multiply-adds of one sample.
        cancels: Whether sums of products may be far smaller than the products, as in Gram matrices.
    """
    chosen = CHOSEN.get()
    if dtype != torch.float32:
        return "ieee"
    if chosen == "auto":
        if INTERPRETING or products < SMALL_PRODUCT:
            return "ieee"
        wanted = ("tf32x3",) if cancels else ("bf16x3", "tf32x3")
        return next((name for name in wanted if name in offered()), "ieee")
    if chosen == "fast":
        return "tf32" if "tf32" in offered() else "ieee"
    if chosen not in offered():
        raise InputError(
            f"precision {chosen!r} is not to be had from Triton {triton.__version__} on "
            f"{target()}; use one of {', '.join(('auto', *offered()))}"
        )
    return chosen


def offered() -> tuple[str, ...]:
    """The ways in which Triton multiplies float32 operands on the current device."""
    return PRECISIONS[1:] if INTERPRETING else _offered(target())


@cache
def _offered(name: str) -> tuple[str, ...]:
    # Neither AMD's compiler nor those before 3.6 know all; each says what it does.
    compiler = "nvidia" if name.startswith("sm_") else "amd"
    options = import_module(f"triton.backends.{compiler}.compiler")
    known = options.CUDAOptions if compiler == "nvidia" else options.HIPOptions
    return tuple(known.allowed_dot_input_precisions)


def settings(family: str, dtype: torch.dtype, size: int = 1 << 30) -> Settings:
    """Tile sizes for a problem whose smaller matrix dimension is ``size``."""
    number = "float" if dtype == torch.float32 else "half"
    bucket = "small" if size <= 32 else "medium" if size < 128 else "large"
    return _settings(target(), family, number, bucket)


@cache
def _settings(name: str, family: str, number: str, bucket: str) -> Settings:
    for column in (name, "default"):
        by_bucket = _table().get(column, {}).get(family, {}).get(number, {})
        if bucket in by_bucket:
            return Settings(*by_bucket[bucket])
    raise BackendError(f"{_TABLE.name} has no entry for {family}, {number}, {bucket}")


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_TABLE.read_text())
    return found


def target() -> str:
    """What kernels are compiled for: ``sm_90``, ``gfx942``, …, or ``interpreter``."""
    return "interpreter" if INTERPRETING else _target(driver.active.get_current_device())


@cache
def _target(device: int) -> str:
    found = driver.active.get_current_target()
    return f"sm_{found.arch}" if found.backend == "cuda" else str(found.arch)


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make a device the current one: Triton launches there, wherever the tensors are."""
    if device.type != "cuda" or device.index in (None, torch.cuda.current_device()):
        return nullcontext()
    return torch.cuda.device(device)


def fit(block: int, size: int) -> int:
    """Shrink a block to the smallest power of two, at least 16, that holds ``size`` elements."""
    return max(16, min(block, int(triton.next_power_of_2(size))))
