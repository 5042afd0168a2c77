"""What results have in common, whatever was computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

#: Methods of the named tuples that some results were before 0.2 -> what to use.
_RENAMED = {"_asdict": "asdict()", "_replace": "dataclasses.replace", "_fields": "asdict()"}


class Result:
    """A frozen dataclass whose fields can be unpacked: ``clean, hit = result``."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.asdict().values())

    def __getattr__(self, name: str) -> Any:
        hint = f"; use {_RENAMED[name]}" if name in _RENAMED else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")

    def asdict(self) -> dict[str, Any]:
        """Fields by name, not copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
