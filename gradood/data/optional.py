"""Optional packages, found lazily, with an error that says what to install."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from gradood.errors import InputError

_INSTALL = "Install it with: pip install gradood[data]"


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


def package_file(package: str, relative: str) -> Path:
    """Path of a file inside an installed package, without importing the package.

    Some of these packages import large frameworks that have nothing to do with their data.

    Raises:
        InputError: The package is not installed, or its version lacks the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f"This data set needs the package {package}, which is not installed. {_INSTALL}"
        )
    path = Path(spec.origin).parent / relative
    if not path.is_file():
        raise InputError(
            f"The installed package {package} lacks {relative}: its version may be too old or too "
            f"new. {_INSTALL}"
        )
    return path
