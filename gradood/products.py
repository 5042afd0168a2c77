"""How kernels multiply float32 operands: a setting of the context, with no GPU or Triton needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: What is chosen: one of ``kernels.launch.PRECISIONS``, or ``"fast"``.
CHOSEN: ContextVar[str] = ContextVar("products", default="auto")


@contextmanager
def products(name: str) -> Iterator[None]:
    """Multiply float32 operands in this way inside the block."""
    token = CHOSEN.set(name)
    try:
        yield
    finally:
        CHOSEN.reset(token)
