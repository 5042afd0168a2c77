"""Inputs that consist of several columns of one file, each given to the model by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gradood.data.files.source import Item, Source, broken
from gradood.errors import first_line


class Several(Source):
    """Mappings from the names of the model's arguments to a row of each column of one file."""

    def __init__(self, columns: Mapping[str, Source]) -> None:
        self._columns = columns

    def file(self) -> Path | None:
        return next(iter(self._columns.values())).file()

    def items(self, start: int = 0) -> Iterator[Item]:
        before = max(start - 1, 0)  # a mismatch there was reported before
        rows = itertools.zip_longest(*(column.items(before) for column in self._columns.values()))
        for number, row in enumerate(rows, before):
            together = None not in row and len({item.id for item in row}) == 1
            if number >= start:
                yield self._together(row) if together else self._apart(row)
            if not together:
                return

    def count(self) -> int | None:
        return next(iter(self._columns.values())).count()

    def _together(self, row: tuple[Item, ...]) -> Item:
        return Item(row[0].id, partial(self._load, row), sum(item.size for item in row))

    def _load(self, row: tuple[Item, ...]) -> dict[str, Any]:
        return {name: item.load() for name, item in zip(self._columns, row, strict=True)}

    def _apart(self, row: tuple[Item | None, ...]) -> Item:
        """An item that reports that the columns do not match from here on."""
        ends = ", ".join(
            f"{name} has {_described(item)}" for name, item in zip(self._columns, row, strict=True)
        )
        first = next(item for item in row if item is not None)
        return broken(first.id, f"the columns do not go together from here on: {ends}")


def _described(item: Item | None) -> str:
    if item is None:
        return "no more"
    try:
        item.load()
    except Exception as error:  # as where inputs are decoded
        return f"{item.id}, of which {first_line(error)}"
    return item.id
