"""``gradood bench``: what gradient norms cost on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gradood.cli import options
from gradood.cli.report import say
from gradood.errors import InputError

if TYPE_CHECKING:
    from gradood.benchmarking.bench import Row
    from gradood.benchmarking.workloads import Workload

_DEFAULT_OUT = Path("gradood-bench")
_EXPLANATION = (
    "Milliseconds a call, and in brackets the time over that of an ordinary forward and backward "
    "pass: medians over rounds in which methods take turns. activation-only: a forward pass and a "
    "backward pass that computes no parameter's gradient."
)


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, how often."""

    model: Annotated[
        list[str] | None, typer.Option(help="Repeat for several; the five standard ones if none.")
    ] = None
    method: Annotated[list[str] | None, typer.Option(help="Repeat for several; all if none.")] = (
        None
    )
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Repeat for several; 1 and 2 if none.")
    ] = None
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every method.")] = 7
    slow_rounds: Annotated[int, typer.Option(min=1, help="Turns of the slow ones.")] = 3
    batch: Annotated[int | None, typer.Option(min=1, help="Samples, for every model.")] = None
    quick: Annotated[
        bool, typer.Option(help="Under a minute: small batches, three rounds, few methods.")
    ] = False
    large: Annotated[
        bool, typer.Option(help="Also torchvision's ResNet-50 and ViT-B/16, at 224 pixels.")
    ] = False

    def workloads(self) -> list[Workload]:
        """Models and batches; a quarter of the samples if ``quick``."""
        from gradood.benchmarking.workloads import LARGE, STANDARD, workload

        names = [*(self.model or STANDARD), *(LARGE if self.large else ())]
        found = [workload(name) for name in dict.fromkeys(names)]
        found = [replace(w, batch=self.batch or w.batch) for w in found]
        return [replace(w, batch=max(2, w.batch // 4)) for w in found] if self.quick else found

    def methods(self) -> tuple[str, ...]:
        """Their names; of all there are, those that are quick if ``quick``."""
        from gradood.benchmarking.registry import METHODS

        asked = self.method or METHODS
        if self.quick and set(asked) == set(METHODS):
            return tuple(name for name, one in METHODS.items() if one.quick)
        return tuple(asked)

    def counts(self) -> tuple[int, ...]:
        """Of threads; one if ``quick``."""
        counts = tuple(self.threads or (1, 2))
        return counts[:1] if self.quick else counts

    def turns(self) -> int:
        """Of a method; three at most if ``quick``."""
        return min(3, self.rounds) if self.quick else self.rounds


@options.grouped
def bench(
    cuda: Annotated[
        bool, typer.Option("--cuda", help="Instead: on this machine's GPU, ResNet-50 and ViT-B/16.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the CSV files.")] = _DEFAULT_OUT,
    methods_from: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    memory: Annotated[bool | None, typer.Option(hidden=True)] = None,
    autocast: Annotated[bool | None, typer.Option(hidden=True)] = None,
    *,
    chosen: BenchOptions,
) -> None:
    """Time the norms beside forward and backward passes, vmap and a loop.

    Other packages, peak memory and bfloat16 autocast: python -m benchmarks.measuring, from a
    checkout of the repository with gradood's extra, bench.
    """
    if methods_from or memory is not None or autocast is not None:
        raise InputError(
            "--methods-from, --memory and --autocast moved: python -m benchmarks.measuring has "
            "them, in a checkout of the repository"
        )
    # Imported late, so that `gradood --help` does not wait for PyTorch.
    from gradood.benchmarking.bench import Job, run, with_references, write

    if cuda:
        from gradood.cli.bench_cuda import on_gpu

        asked = replace(chosen, quick=False).workloads() if chosen.model or chosen.batch else None
        on_gpu(asked, out)
        return
    workloads, names = chosen.workloads(), with_references(chosen.methods())
    rows: list[Row] = []
    console = Console()
    write(rows, out / "bench.csv")  # before there are results to lose
    for count in chosen.counts():
        with Console(stderr=True).status("") as status:
            for one in workloads:
                status.update(f"{one.model}, {count} threads …")
                rows += run(Job(one, names, count, chosen.turns(), chosen.slow_rounds))
        write(rows, out / "bench.csv")
        console.print(_table([row for row in rows if row.threads == count]))
    console.print(_EXPLANATION, highlight=False)
    say(f"Results: {(out / 'bench.csv').resolve()}")


def _table(rows: Sequence[Row]) -> Table:
    """A method a line, a model a column."""
    threads = rows[0].threads
    title = f"{threads} thread{'s' * (threads > 1)}, float32"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", no_wrap=True)
    models = list(dict.fromkeys((row.model, row.batch) for row in rows))
    for name, batch in models:
        table.add_column(f"{name}, {batch}", justify="right")
    cells = {(row.method, row.model): row for row in rows}
    for method in dict.fromkeys(row.method for row in rows):
        line = [_cell(cells[method, name]) for name, _ in models]
        table.add_row(method, *line, style="bold" if method.startswith("gradood") else "")
    return table


def _cell(row: Row) -> str:
    if row.median_s is None:
        return row.note
    ratio = row.ratio_forward_backward
    return f"{1e3 * row.median_s:.4g}" + ("" if ratio is None else f" ({ratio:.2f})")
