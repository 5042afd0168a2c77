"""Which inputs a run that was interrupted has not scored yet, whatever became of the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np

from gradood.data.files import Item, Source
from gradood.errors import InputError


class Seen:
    """Identifiers, each as often as it was seen, in 16 bytes each.

    Args:
        names: All that were seen.
    """

    def __init__(self, names: Iterable[str]) -> None:
        hashes = np.fromiter(map(_hash, names), np.uint64)
        self._hashes, self._counts = np.unique(hashes, return_counts=True)
        self._left = self._counts.copy()

    def reset(self) -> None:
        """Forget what was taken."""
        self._left = self._counts.copy()

    def take(self, name: str) -> bool:
        """Whether ``name`` was seen once more than it was taken."""
        hashed = np.uint64(_hash(name))
        place = int(np.searchsorted(self._hashes, hashed))
        if place == len(self._hashes) or self._hashes[place] != hashed or not self._left[place]:
            return False
        self._left[place] -= 1
        return True


class Remaining(Source):
    """The inputs of a source that were not seen yet, in its order.

    Args:
        whole: All inputs that there are now.
        names: Identifiers of those that were seen, in any order; they may be gone by now.
    """

    def __init__(self, whole: Source, names: Iterable[str]) -> None:
        self._whole, self._seen = whole, Seen(names)

    def items(self, start: int = 0) -> Iterator[Item]:
        """The items that are left."""
        self._seen.reset()
        number = 0
        for item in self._whole.items():
            if not self._seen.take(item.id):
                if number >= start:
                    yield item
                number += 1


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
    """Refuse files that were changed since their rows were numbered.

    Raises:
        InputError: One was.
    """
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
