"""One measured number set a row, in a CSV file."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, get_type_hints

from torch import Tensor

from gradood.evaluation import evaluate

log = logging.getLogger("gradood")

#: The part of rows that name a detector that does not run, and, in place of a set, why.
FAILED = "does not run"


class Row(NamedTuple):
    """One detector on one set of one classifier, for one seed of splits and fits."""

    part: str
    classifier: str
    seed: int
    detector: str
    set: str
    auroc: float
    aupr: float
    fpr95: float
    normal: int
    anomalous: int


def measured(
    part: str, classifier: str, seed: int, detector: str, name: str, normal: Tensor, other: Tensor
) -> Row:
    """The row of two sets of scores."""
    found = evaluate(normal, other)
    shares = (100 * found.auroc, 100 * found.aupr_anomalous, 100 * found.fpr95)
    return Row(part, classifier, seed, detector, name, *shares, len(normal), len(other))


def read(path: Path) -> list[Row]:
    """What ``write`` wrote."""
    kinds = get_type_hints(Row)
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    return [Row(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in found]


def write(rows: Iterable[Row], path: Path) -> None:
    """All rows, three digits after the point."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        for row in rows:
            writer.writerow([f"{v:.3f}" if isinstance(v, float) else v for v in row])


def kept(
    name: str, parts: Mapping[str, Callable[[], list[Row]]], path: Callable[[str], Path]
) -> list[Row]:
    """The rows of every part: those in its file, or else computed and written there."""
    found = []
    for part, make in parts.items():
        file = path(part)
        if not file.exists():
            start = time.monotonic()
            write(make(), file)
            log.info("%s, %s: %.0f s", name, part, time.monotonic() - start)
        found += read(file)
    return found
