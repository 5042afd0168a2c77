"""``python -m benchmarks.measuring``: what gradient norms cost, beside what else there is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import report
from benchmarks.measuring.others import include
from benchmarks.measuring.plot import draw
from benchmarks.measuring.records import Row, append, prepare
from benchmarks.measuring.report import setting, summary
from benchmarks.measuring.study import Settings, measure
from gradood.cli import options
from gradood.cli.bench import BenchOptions
from gradood.errors import GradoodError

app = typer.Typer(pretty_exceptions_enable=False)
_DEFAULT_OUT = Path("gradood-bench")


@app.command()
@options.grouped
def bench(
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    autocast: Annotated[bool, typer.Option(help="Also under bfloat16 autocast.")] = False,
    methods_from: Annotated[
        list[str] | None,
        typer.Option(help="Module with METHODS to measure too: benchmarks.peers."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the CSV files and the plot.")] = (
        _DEFAULT_OUT
    ),
    *,
    chosen: BenchOptions,
) -> None:
    """Time the norms against forward and backward passes and other ways to them; CSV and plot.

    With other packages: --methods-from benchmarks.peers, and gradood's extra, bench.
    """
    with _errors_in_one_sentence():
        for module in methods_from or ():
            include(module)
        settings = Settings(
            *(chosen.workloads(), chosen.methods(), chosen.counts()),
            *(chosen.turns(), chosen.slow_rounds),
            memory=memory and not chosen.quick,
            autocast=autocast and not chosen.quick,
            methods_from=tuple(methods_from or ()),
            together=chosen.quick,
        )
        _tables(settings, out)


@contextmanager
def _errors_in_one_sentence() -> Iterator[None]:
    try:
        yield
    except GradoodError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error


def _tables(settings: Settings, out: Path) -> None:
    prepare(out / "norms.csv", Row)
    begin = time.perf_counter()
    console = Console()
    rows: list[Row] = []
    with Console(stderr=True).status("") as status:
        for part in measure(settings, lambda text: status.update(f"{text} …")):
            append(out / "norms.csv", part)
            rows += part
            console.print(report.detail(part))
    draw(rows, out / "norms.svg")
    for table in _summaries(rows):
        console.print(table)
    console.print("*: norms missing or wrong, see above.", highlight=False)
    console.print(report.EXPLANATION, highlight=False)
    console.print(report.versions(rows), highlight=False, markup=False)
    console.print(f"{time.perf_counter() - begin:.0f} s in all.", highlight=False)
    console.print(f"Results: {(out / 'norms.csv').resolve()}", highlight=False, soft_wrap=True)
    console.print(f"Plot: {(out / 'norms.svg').resolve()}", highlight=False, soft_wrap=True)


def _summaries(rows: Sequence[Row]) -> list[Table]:
    """Times under every setting, then memory, which has one."""
    tables = []
    for name in dict.fromkeys(map(setting, rows)):
        chosen = [r for r in rows if setting(r) == name]
        tables.append(summary(chosen, "ratio_forward_backward", f"Time / (b), {name}"))
    weighed = [r for r in rows if r.peak_mb is not None]
    if weighed:
        tables.append(summary(weighed, "peak_mb", "Peak memory above model and input, MB"))
    return tables


if __name__ == "__main__":
    app()
