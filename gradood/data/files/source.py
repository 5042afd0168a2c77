"""Sources of inputs: the interface, and sources made of others or of a Python iterable."""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias
from zlib import crc32

from gradood.errors import InputError
from gradood.text import printable

_LOG = logging.getLogger("gradood")

#: Bytes of the largest single input in a file; a larger size is taken for damage.
LARGEST = 1 << 28


#: How many files of each kind that is left out are named.
_NAMED = 3

#: Where reading resumes: the number of the part, and of the input within it.
Position: TypeAlias = "tuple[int, int]"


@dataclass(frozen=True, slots=True)
class Item:
    """One input that has not been read yet.

    Attributes:
        id: Unique within its source.
        load: Reads it in another thread: a picture of Pillow, an array or a tensor. An exception
            becomes the error of this input.
        size: Bytes that it holds until then.
    """

    id: str
    load: Callable[[], Any]
    size: int = 0


class LeftOut:
    """Files that are no inputs: counted by kind, the first of each kind named."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._names: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, name: str, kind: str) -> None:
        """One more of a kind."""
        self._counts[kind] += 1
        if self._counts[kind] <= _NAMED:
            self._names.setdefault(kind, []).append(printable(name))

    def log(self) -> None:
        """Write a warning, if there was any."""
        if not self._counts:
            return
        kinds = []
        for kind, count in self._counts.most_common():
            more = ", …" if count > _NAMED else ""
            kinds.append(f"{count:,} {printable(kind)} ({', '.join(self._names[kind])}{more})")
        _LOG.warning("left out of %s: %s", self._where, "; ".join(kinds))


class Source(ABC):
    """Inputs in an order that is always the same."""

    #: Whether other processes have the rest, so that this part may be empty.
    is_share: bool = False

    @abstractmethod
    def items(self, start: int = 0) -> Iterator[Item]:
        """The inputs from number ``start`` on; an unreadable input is an item whose load raises.

        An item that reports that the rest of a file is lost comes once, not from a later start.
        """

    def parts(self) -> Sequence[Source]:
        """The sources that this one consists of, in order."""
        return (self,)

    def count(self) -> int | None:
        """How many inputs there are, where that is known without reading them."""
        return None

    def file(self) -> Path | None:
        """The one file whose rows are the inputs; None where inputs have names of their own."""
        return None

    def placed(self, start: Position = (0, 0)) -> Iterator[tuple[Item, Position]]:
        """The inputs from ``start`` on, each with the position after it, to go on from."""
        for number, part in enumerate(self.parts()):
            if number >= start[0]:
                first = start[1] if number == start[0] else 0
                for following, item in enumerate(part.items(first), first + 1):
                    yield item, (number, following)


class IterableSource(Source):
    """The elements of a Python iterable: inputs, or pairs of a string and an input.

    Args:
        iterable: Of pictures, arrays or tensors, one input each.
        read: What makes one of these of an element.
    """

    def __init__(
        self, iterable: Iterable[Any], *, read: Callable[[Any], Any] | None = None
    ) -> None:
        self._iterable, self._read = iterable, read or itself

    def items(self, start: int = 0) -> Iterator[Item]:
        for number, value in enumerate(itertools.islice(iter(self._iterable), start, None), start):
            named = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
            name, content = value if named else (str(number), value)
            yield Item(name, partial(self._read, content))

    def count(self) -> int | None:
        try:
            return len(self._iterable)  # type: ignore[arg-type]
        except TypeError:
            return None


class Chain(Source):
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Source], is_share: bool = False) -> None:
        self._parts, self.is_share = parts, is_share

    def items(self, start: int = 0) -> Iterator[Item]:
        everything = itertools.chain.from_iterable(part.items() for part in self._parts)
        return itertools.islice(everything, start, None)

    def parts(self) -> Sequence[Source]:
        return self._parts

    def count(self) -> int | None:
        counts = [part.count() for part in self._parts]
        return None if None in counts else sum(counts)  # type: ignore[arg-type]


class Chosen(Source):
    """Some of the inputs of another source, in its order."""

    def __init__(self, whole: Source) -> None:
        self._whole = whole

    @abstractmethod
    def chosen(self) -> Iterator[Item]:
        """Those inputs, from the first one on."""

    def items(self, start: int = 0) -> Iterator[Item]:
        return itertools.islice(self.chosen(), start, None)


class Share(Chosen):
    """One process's share of inputs that have names: by their names, whichever others there are."""

    is_share = True

    def __init__(self, whole: Source, rank: int, world: int) -> None:
        super().__init__(whole)
        self._rank, self._world = rank, world

    def chosen(self) -> Iterator[Item]:
        return (i for i in self._whole.items() if crc32(i.id.encode()) % self._world == self._rank)

    def count(self) -> int | None:
        return sum(1 for _ in self.chosen())


class Stride(Source):
    """Every ``world``-th item from number ``rank`` on: one process's share of a file."""

    is_share = True

    def __init__(self, whole: Source, rank: int, world: int) -> None:
        self._whole, self._rank, self._world = whole, rank, world

    def items(self, start: int = 0) -> Iterator[Item]:
        first = self._rank + start * self._world
        return itertools.islice(self._whole.items(first), 0, None, self._world)

    def file(self) -> Path | None:
        return self._whole.file()

    def count(self) -> int | None:
        whole = self._whole.count()
        return None if whole is None else len(range(self._rank, whole, self._world))


def broken(name: str, reason: str) -> Item:
    """An item that cannot be read, for ``reason``."""
    return Item(name, partial(_fail, printable(reason)))


def _fail(reason: str) -> NoReturn:
    raise InputError(reason)


def itself(value: Any) -> Any:
    """The value: what an input that needs no reading is loaded with."""
    return value
