"""Classes by their names: a leaf that knows no detector, so that every module may import it."""

from __future__ import annotations

import inspect
from typing import Generic, TypeVar

T = TypeVar("T")

#: Methods that subclasses override: their names before 0.2 -> now.
_RENAMED = {
    "_score_batch": "score_batch",
    "_score_norms": "score_norms",
    "_settings": "settings",
    "_restore": "restore",
    "_of_earlier_version": "from_earlier_version",
}


class Registry(Generic[T]):
    """Classes by class name, which files hold, and by the name that the command line gives them.

    Attributes:
        named: Command-line name -> class, in the order of registration.
    """

    def __init__(self) -> None:
        self._classes: dict[str, type[T]] = {}
        self.named: dict[str, type[T]] = {}

    def __repr__(self) -> str:
        return f"Registry({', '.join(self.named)})"

    def add(self, cls: type[T], name: str | None = None) -> None:
        """Register a class; a later class of the same name replaces an earlier one."""
        self._classes[cls.__name__] = cls
        if name is not None:
            self.named[name] = cls

    def concrete(self) -> dict[str, type[T]]:
        """Class name -> class, without abstract classes."""
        return {name: cls for name, cls in self._classes.items() if not inspect.isabstract(cls)}


def refuse_old_names(cls: type) -> None:
    """Refuse a detector class that overrides a method under the name it had before 0.2.

    Raises:
        TypeError: It does; the message says the new name.
    """
    for old, new in _RENAMED.items():
        if old in vars(cls):
            raise TypeError(f"{cls.__name__}.{old} is now {new}; rename it")
