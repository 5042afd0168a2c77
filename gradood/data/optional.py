"""Optional packages, found lazily, with an error that says what to install."""

import importlib
from types import ModuleType

from gradood.errors import InputError


def require(module: str, extra: str = "data", what: str = "This data set") -> ModuleType:
    """Import ``module``, or raise an ``InputError`` that names the extra which brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise InputError(
            f"{what} needs the package {package}, which cannot be imported ({error}). "
            f"Install it with: pip install gradood[{extra}]"
        ) from error
