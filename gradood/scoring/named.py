"""Python objects by name, ``package.module:attribute``."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from gradood.errors import InputError


def named(option: str, name: str, expected: str) -> Any:
    """What ``module:attribute`` is; modules of the current folder are found, too.

    Raises:
        InputError: There is no such module or attribute; the message says what was expected.
    """
    module, _, attribute = name.partition(":")
    if not getattr(sys.flags, "safe_path", False) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as under python -m; the gradood script has its own folder
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{option} {name}: {error}; expected {expected}") from error
