"""Rows that are not as they should be, each with the reason why that stays so."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

from tests.suites.judge import Row


class Listed(NamedTuple):
    """Rows by a pattern of ``suite/entry/case``, what they end in, and why."""

    rows: str
    outcome: str
    reason: str


#: None at present.
LISTED: tuple[Listed, ...] = ()


def listed(row: Row) -> Listed | None:
    """What the table says about a row, if it ends as the table says."""
    for line in LISTED:
        if row.outcome == line.outcome and fnmatchcase(row.name, line.rows):
            return line
    return None
