"""Sums that kernels left to the end of a pass: who holds them, with no GPU or Triton needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol


class Sums(Protocol):
    """Partial sums on one device, and the results that are not there yet."""

    def finish(self) -> None:
        """Add up: from now on the results may be read."""


#: By what a backend tells them apart with; None where results are wanted at once.
HELD: ContextVar[dict[Any, Sums] | None] = ContextVar("held", default=None)


@contextmanager
def held(sums: dict[Any, Sums]) -> Iterator[None]:
    """Let operators inside the block return results that ``finish`` fills in."""
    token = HELD.set(sums)
    try:
        yield
    finally:
        HELD.reset(token)


def finish(sums: dict[Any, Sums]) -> None:
    """Fill in every result that operators returned inside ``held``."""
    while sums:
        sums.popitem()[1].finish()
