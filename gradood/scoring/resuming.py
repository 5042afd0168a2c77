"""Which inputs an interrupted run has not scored yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np

from gradood.data.files import Item, Source
from gradood.data.files.source import Chosen
from gradood.errors import InputError


class Remaining(Chosen):
    """The inputs that were not seen yet, each as often as it is there; seen ones may be gone.

    Names are kept as hashes, in 16 bytes each.
    """

    def __init__(self, whole: Source, names: Iterable[str]) -> None:
        super().__init__(whole)
        hashes = np.fromiter(map(_hash, names), np.uint64)
        self._hashes, self._counts = np.unique(hashes, return_counts=True)

    def chosen(self) -> Iterator[Item]:
        """The items that are left."""
        left = self._counts.copy()
        for item in self._whole.items():
            hashed = np.uint64(_hash(item.id))
            place = int(np.searchsorted(self._hashes, hashed))
            if place < len(left) and self._hashes[place] == hashed and left[place]:
                left[place] -= 1
            else:
                yield item


def stamps(source: Source) -> dict[str, list[int]]:
    """Size and time of every file whose inputs are numbered, so that a change is noticed."""
    found = {}
    for part in source.parts():
        path = part.file()
        if path is not None and path.exists():
            status = path.stat()
            found[str(path)] = [status.st_size, status.st_mtime_ns]
    return found


def check_unchanged(before: dict[str, list[int]], now: dict[str, list[int]]) -> None:
    """Refuse files that were changed since their rows were numbered."""
    changed = [path for path in before if path in now and before[path] != now[path]]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise InputError(
            f"{changed[0]}{more} changed since this run was begun, and its inputs are known by "
            "their place in it alone; begin again without --resume. A copy of the same file must "
            "keep its time (cp -p, rsync -t)"
        )


def is_numbered(source: Source) -> bool:
    """Whether inputs are known by their place in files rather than by names of their own."""
    return all(part.file() is not None for part in source.parts())


def relative(paths: list[str]) -> bool:
    """Whether identifiers leave out the path: those of one folder do."""
    return len(paths) == 1 and Path(paths[0]).is_dir()


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
