"""How the cost grows with samples, width, depth and image size, and the exponent of that.

python -m benchmarks.scaling [--model mlp] [--threads 1] [--rounds 7] [--out FOLDER]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measuring.records import Row, append, prepare
from benchmarks.measuring.report import empty_table
from benchmarks.measuring.study import Progress, Settings, measure
from gradood.benchmarking.registry import ACTIVATION_ONLY, CPP, FORWARD_BACKWARD, TORCH
from gradood.benchmarking.workloads import Workload, workload
from gradood.errors import InputError

#: Where each series starts, and the values of the one quantity that grows.
SERIES: dict[str, tuple[dict[str, int], dict[str, tuple[int, ...]]]] = {
    "mlp": (
        {"batch": 128},
        {"batch": (64, 128, 256, 512), "width": (256, 512, 1024, 2048), "depth": (2, 4, 8, 16)},
    ),
    "resnet20": (
        {"batch": 16},
        {
            "batch": (8, 16, 32, 64),
            "width": (8, 16, 32, 64),
            "depth": (1, 2, 4, 8),
            "size": (16, 24, 32, 48, 64),
        },
    ),
    "vit": (
        {"batch": 8},
        {
            "batch": (4, 8, 16, 32),
            "width": (64, 128, 256, 512),
            "depth": (2, 4, 8, 16),
            "size": (16, 24, 32, 48, 64),
        },
    ),
}
METHODS = (ACTIVATION_ONLY, FORWARD_BACKWARD, CPP, TORCH)


@dataclass(frozen=True)
class Exponent:
    """``seconds ≈ constant · quantityᵉ`` along one axis of a model.

    Attributes:
        date, commit, torch, cpu, isa, threads: as in ``Row``.
        model, axis, values: what grew.
        method: what was timed.
        exponent: e; 1 for cost in proportion.
        residual: root mean square of what the line leaves of log seconds; 0.05 is 5 %.
        seconds: the medians that were fitted.
    """

    date: str
    commit: str
    torch: str
    cpu: str
    isa: str
    threads: int
    model: str
    axis: str
    values: str
    method: str
    exponent: float
    residual: float
    seconds: str


def fit(values: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The slope of log seconds over log values by least squares, and the residual's RMS.

    Raises:
        InputError: fewer than two different values, or one that has no logarithm.
    """
    if len(set(values)) < 2 or min(*values, *seconds) <= 0:
        raise InputError("an exponent needs two different values, and everything above zero")
    x, y = np.log(values), np.log(seconds)
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), math.sqrt(float(np.mean((y - slope * x - intercept) ** 2)))


def series(model: str) -> Iterator[tuple[str, list[Workload]]]:
    """The axes of a model, each with its workloads."""
    if model not in SERIES:
        raise InputError(f"no scaling series for {model!r}; use one of {', '.join(SERIES)}")
    start, axes = SERIES[model]
    standard: dict[str, Any] = asdict(workload(model)) | start
    for axis, values in axes.items():
        yield axis, [Workload(**{**standard, axis: value}) for value in values]


def scale(
    model: str, threads: int, rounds: int, progress: Progress = lambda text: None
) -> Iterator[Exponent]:
    """Time every series of a model and fit an exponent for every method."""
    for axis, workloads in series(model):
        progress(f"{model}: time over {axis}")
        settings = Settings(workloads, METHODS, (threads,), rounds, memory=False)
        measured = [row for part in measure(settings) for row in part]
        yield from exponents(measured, axis)


def exponents(rows: Sequence[Row], axis: str) -> Iterator[Exponent]:
    """Fit the rows of one axis, a method at a time."""

    def by_method(row: Row) -> str:
        return row.method

    timed = sorted((r for r in rows if r.median_s is not None), key=by_method)
    for method, group in groupby(timed, by_method):
        points = list(group)
        values = [getattr(r, axis) for r in points]
        seconds = [r.median_s or math.nan for r in points]
        if len(set(values)) < 2:
            continue
        exponent, residual = fit(values, seconds)
        first = points[0]
        yield Exponent(
            first.date,
            first.commit,
            first.torch,
            first.cpu,
            first.isa,
            first.threads,
            first.model,
            axis,
            " ".join(map(str, values)),
            method,
            exponent,
            residual,
            " ".join(f"{s:.4g}" for s in seconds),
        )


def shown(found: Sequence[Exponent]) -> Table:
    """An axis of a model a line, a method a column."""
    methods = list(dict.fromkeys(e.method for e in found))
    title = "Exponent of the time as one quantity grows (least squares, log-log)"
    lines = empty_table(title, ())
    lines.add_column("values")
    for method in methods:
        lines.add_column(method, justify="right")
    for model, axis, values in dict.fromkeys((e.model, e.axis, e.values) for e in found):
        by_method = {e.method: e for e in found if (e.model, e.axis) == (model, axis)}
        cells = [f"{by_method[m].exponent:.2f}" if m in by_method else "" for m in methods]
        lines.add_row(f"{model}, {axis}", values, *cells)
    return lines


def main(
    model: Annotated[
        list[str] | None, typer.Option(help="Repeat for several; all if none.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    out: Annotated[Path, typer.Option(help="Folder for scaling.csv.")] = Path("gradood-bench"),
) -> None:
    """Time every series of the models, and append the exponents to a CSV file."""
    prepare(out / "scaling.csv", Exponent)
    found: list[Exponent] = []
    with Console(stderr=True).status("") as status:
        for name in model or SERIES:
            part = list(scale(name, threads, rounds, lambda text: status.update(f"{text} …")))
            append(out / "scaling.csv", part)
            found += part
    console = Console()
    console.print(shown(found))
    console.print(f"Results: {(out / 'scaling.csv').resolve()}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
