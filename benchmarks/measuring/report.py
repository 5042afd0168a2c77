"""Tables of results for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from benchmarks.measuring.records import Row
from gradood.benchmarking.registry import CPP, TORCH

_ABSENT = "–"
EXPLANATION = (
    "(b): an ordinary forward and backward pass. (c): a forward pass and a backward pass that "
    "computes no parameter's gradient. Ratios are medians over rounds in which methods take turns. "
    "Peak memory is above model and input. Norms: checked against a float64 loop; those of "
    "GradUncertainty are one sum over all parameters, those of GradNorm one sum of absolute values."
)


def detail(rows: Sequence[Row]) -> Table:
    """Everything about one workload under one setting, a method a line."""
    first = rows[0]
    ours = next((r.median_s for r in rows if r.method == CPP and r.median_s), None) or next(
        (r.median_s for r in rows if r.method == TORCH), None
    )
    weighed = any(row.peak_mb is not None for row in rows)
    table = empty_table(
        f"{first.model}, {first.batch} × {first.size}² pixels, {setting(first)}",
        ("ms", "20–80 %", "/ (b)", "/ (c)", "/ ours", *(("peak MB", "/ (b)") if weighed else ())),
    )
    table.add_column("rounds", justify="right")
    table.add_column("norms", overflow="fold")
    for row in rows:
        spread = _ABSENT
        if row.p20_s is not None and row.p80_s is not None:
            spread = f"{1e3 * row.p20_s:.4g}–{1e3 * row.p80_s:.4g}"
        table.add_row(
            row.method,
            _number(row.median_s, 1e3),
            spread,
            _number(row.ratio_forward_backward),
            _number(row.ratio_activation_only),
            _number(row.median_s, 1 / ours if ours else 1.0),
            *((_number(row.peak_mb), _number(row.ratio_peak)) if weighed else ()),
            str(row.rounds or _ABSENT),
            escape(row.faults),
            style="bold" if row.package == "gradood" else "",
        )
    return table


def summary(rows: Sequence[Row], column: str, title: str) -> Table:
    """One column of many rows, a method a line, a workload a column; * where norms are faulty."""
    workloads = list(dict.fromkeys((r.model, r.batch) for r in rows))
    cells = {(r.method, (r.model, r.batch)): r for r in rows}
    table = empty_table(title, [f"{model}, {batch}" for model, batch in workloads])
    for method in dict.fromkeys(r.method for r in rows):
        line = []
        for workload in workloads:
            row = cells.get((method, workload))
            value = _ABSENT if row is None else _number(getattr(row, column))
            line.append(value + ("*" if row is not None and (row.missing or row.wrong) else ""))
        bold = method in (CPP, TORCH)
        table.add_row(method, *line, style="bold" if bold else "")
    return table


def setting(row: Row) -> str:
    """Threads and precision, in words."""
    return f"{row.threads} thread{'s' * (row.threads > 1)}, {row.precision}"


def versions(rows: Sequence[Row]) -> str:
    """The packages, the machine and the date behind the rows."""
    first = rows[0]
    packages = dict.fromkeys(f"{r.package} {r.version}" for r in rows if r.version)
    commit = f" (commit {first.commit})" if first.commit else ""
    return (
        f"{', '.join(packages)}{commit}. {first.cpu}; {first.features}; {first.cores} cores, "
        f"kernels for {first.isa or 'no instruction set'}; load {first.load:.1f} before. "
        f"{first.date}."
    )


def empty_table(title: str, columns: Sequence[str]) -> Table:
    """Make a table with a column of names, then columns of numbers."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _number(value: float | None, scale: float = 1.0) -> str:
    """Three digits, without exponents."""
    if value is None:
        return _ABSENT
    scaled = value * scale
    return f"{scaled:.0f}" if scaled >= 100 else f"{scaled:.3g}"
