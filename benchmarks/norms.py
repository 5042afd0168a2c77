"""Measure the committed tables: ``benchmarks.measuring`` with peers, into ``benchmarks/results``.

    python benchmarks/norms.py [options of benchmarks.measuring]

Then says which of the project's own targets the newest rows reach; ``--targets`` does only that.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring.__main__ import app  # noqa: E402
from gradood.benchmarking.workloads import workload  # noqa: E402

RESULTS = Path(__file__).parent / "results"
OURS, ORDINARY = "gradood cpp", "forward+backward"
MODELS = ("mlp", "resnet18", "resnet20", "vit", "depthwise")

#: Time of ours over that of forward + backward, at most.
CEILINGS = dict(zip(MODELS, (0.75, 0.80, 0.93, 0.90, 0.98), strict=True))
#: Time of a peer over ours, at least.
SPEEDUPS = {
    "BackPACK": dict(zip(MODELS, (1.9, 2.5, 3.0, 1.6, 2.9), strict=True)),
    "Opacus ghost": dict(zip(MODELS, (2.2, 2.8, 2.1, 1.7, 3.0), strict=True)),
    "vmap": dict(zip(MODELS, (35.0, 2.7, 1.6, 1.6, 1.9), strict=True)),
    "GradUncertainty": dict(zip(MODELS, (35.0, 2.7, 1.6, 1.6, 1.9), strict=True)),
}
#: Under bfloat16 autocast, on a machine with AMX.
AUTOCAST = dict.fromkeys(("resnet18", "resnet20", "vit"), 1.0)
#: Peak memory over that of forward + backward at most, and of unchunked vmap over ours at least.
PEAK = 1.05
PEAK_VMAP = dict.fromkeys(("mlp", "resnet18"), 8.0)

Rows = dict[tuple[str, str, str, str], dict[str, str]]


def newest() -> Rows:
    """The last row of every model, setting and method at its standard batch."""
    with (RESULTS / "norms.csv").open(encoding="utf-8", newline="") as file:
        return {
            (row["model"], row["threads"], row["precision"], row["method"]): row
            for row in csv.DictReader(file)
            if int(row["batch"]) == workload(row["model"]).batch
        }


def judged(rows: Rows) -> list[tuple[str, str, float, str, bool]]:
    """Every target that the rows can be held against: (setting, target, value, bound, reached)."""
    found = []
    for model, threads, precision, method in rows:
        if method != OURS:
            continue
        mine = rows[model, threads, precision, OURS]
        where = f"{model}, {threads} thread{'s' * (threads != '1')}, {precision}"
        lines = []
        ceilings = CEILINGS if precision == "float32" else AUTOCAST
        lines.append(("time / (b)", mine["ratio_forward_backward"], "≤", ceilings.get(model)))
        lines.append(("peak / (b)", mine["ratio_peak"], "≤", PEAK))
        for peer, bounds in SPEEDUPS.items():
            other = rows.get((model, threads, precision, peer), {})
            lines.append((f"{peer} / ours", ratio(other, mine, "median_s"), "≥", bounds.get(model)))
        vmap = rows.get((model, threads, precision, "vmap"), {})
        lines.append(
            ("peak of vmap / ours", ratio(vmap, mine, "peak_mb"), "≥", PEAK_VMAP.get(model))
        )
        for name, value, sign, bound in lines:
            if value and bound is not None:
                number = float(value)
                reached = number <= bound if sign == "≤" else number >= bound
                found.append((where, name, number, f"{sign} {bound}", reached))
    return found


def ratio(a: dict[str, str], b: dict[str, str], column: str) -> str:
    return str(float(a[column]) / float(b[column])) if a.get(column) and b.get(column) else ""


def show_targets() -> None:
    table = Table(title="Targets, newest rows", title_justify="left", box=SIMPLE_HEAD)
    for column in ("setting", "target", "value", "bound", ""):
        table.add_column(column, no_wrap=True)
    results = judged(newest())
    for where, name, value, bound, reached in results:
        verdict = "reached" if reached else "[red]missed[/red]"
        table.add_row(where, name, f"{value:.3g}", bound, verdict)
    console = Console()
    console.print(table)
    console.print(f"{sum(r[-1] for r in results)} of {len(results)} reached.", highlight=False)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments != ["--targets"]:
        peers = ["--methods-from", "benchmarks.peers"]
        command = ["--out", str(RESULTS), *peers, *arguments]
        if status := app(command, standalone_mode=False):
            sys.exit(status)
    if "--help" not in arguments:
        show_targets()
