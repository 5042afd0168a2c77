"""Python objects by name, ``package.module:attribute``."""

from __future__ import annotations

import importlib
from typing import Any

from gradood.errors import InputError


def named(option: str, name: str, expected: str) -> Any:
    """What ``module:attribute`` is.

    Raises:
        InputError: There is no such module or attribute; the message says what was expected.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{option} {name}: {error}; expected {expected}") from error
