"""Results as rows of a CSV file that only ever grows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gradood.errors import InputError


@dataclass(frozen=True)
class Row:
    """One method on one workload under one setting, and everything that it was measured with.

    Attributes:
        date: Of the measurement, UTC, ISO 8601.
        commit: Of the source checkout, ``-dirty`` when edited; empty for an installed package.
        gradood, torch: Versions.
        cpu, features, cores: The processor, its features that matter, the cores in reach.
        isa: The instruction set of the C++ kernels.
        load: Processes that wanted to run in the minute before: on a quiet machine below 1 before
            the first measurement, and about ``threads`` later.
        model, batch, size, width, depth: The workload.
        threads: OpenMP threads. precision: float32, or bfloat16 for autocast.
        method, package, version: What was measured.
        rounds: Turns that the method had; ``median_s``, ``p20_s``, ``p80_s`` are seconds a call.
        ratio_forward_backward, ratio_activation_only: Medians over rounds of the time divided by
            that of an ordinary forward + backward pass, and of a forward + activation-only
            backward, in the same round.
        peak_mb: 10⁶ bytes of resident memory above model and input, at most, in a process of the
            method's own with one thread; ratio_peak divides it by that of forward + backward.
        checked: Parameters whose norms were compared with the float64 loop.
        error: Largest relative error of a column that is not wrong.
        missing, wrong: How many parameters have no norm, and one that is off by more than 0.1 %
            (30 % under autocast) and more than three times what float32 autograd is.
        note: Which those are, or why there is no measurement.
    """

    date: str
    commit: str
    gradood: str
    torch: str
    cpu: str
    features: str
    cores: int
    isa: str
    load: float
    model: str
    batch: int
    size: int
    width: int
    depth: int
    threads: int
    precision: str
    method: str
    package: str
    version: str
    rounds: int
    median_s: float | None
    p20_s: float | None
    p80_s: float | None
    ratio_forward_backward: float | None
    ratio_activation_only: float | None
    peak_mb: float | None
    ratio_peak: float | None
    checked: int
    error: float | None
    missing: int
    wrong: int
    note: str

    @property
    def faults(self) -> str:
        """What the method leaves out or gets wrong, in words."""
        if self.median_s is None:
            return self.note
        if not self.checked:
            return ""
        counts = (("missing", self.missing), ("wrong", self.wrong))
        return ", ".join(f"{n} of {self.checked} {what}" for what, n in counts if n) or "right"


def append(path: Path, rows: Sequence[Any]) -> None:
    """Append dataclass instances of one kind to a CSV file; its header is written once.

    Raises:
        InputError: The file has other columns, or cannot be written.
    """
    if not rows:
        return
    columns = prepare(path, type(rows[0]))
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writerows(_rounded(asdict(row)) for row in rows)


def prepare(path: Path, kind: type[Any]) -> list[str]:
    """Make the file with its header, or check the header: before there are results to lose.

    Returns the columns; raises as ``append`` does.
    """
    columns = [f.name for f in fields(kind)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            header = next(csv.reader(file), None)
            if header is None:
                csv.writer(file, lineterminator="\n").writerow(columns)
    except OSError as error:
        raise InputError(f"cannot write results to {path}: {error.strerror}") from error
    if header not in (None, columns):
        raise InputError(f"{path} has other columns than this version writes; move it away")
    return columns


def _rounded(cells: dict[str, Any]) -> dict[str, Any]:
    """Four digits are more than any of this repeats to."""
    return {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in cells.items()}
