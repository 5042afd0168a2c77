"""Methods that other modules bring, such as other packages' in ``benchmarks.peers``."""

from __future__ import annotations

from importlib import import_module

from gradood.benchmarking.methods import Method
from gradood.benchmarking.registry import METHODS
from gradood.errors import InputError


def include(module: str) -> None:
    """Add the methods of a module that is importable here: its ``METHODS``, by name.

    Raises:
        InputError: There is no such module, or it has none.
    """
    try:
        found: dict[str, Method] = import_module(module).METHODS
    except (ImportError, AttributeError) as error:
        raise InputError(f"--methods-from {module}: {error}; give a module with METHODS") from error
    METHODS.update(found)
