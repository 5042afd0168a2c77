"""``gradood bench``: what gradient norms cost on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gradood.cli.report import say
from gradood.errors import InputError

if TYPE_CHECKING:
    from gradood.benchmarking.bench import Row

_DEFAULT_OUT = Path("gradood-bench")
_EXPLANATION = (
    "Milliseconds a call, and in brackets the time over that of an ordinary forward and backward "
    "pass: medians over rounds in which methods take turns. activation-only: a forward pass and a "
    "backward pass that computes no parameter's gradient."
)


def bench(
    model: Annotated[
        list[str] | None, typer.Option(help="Repeat for several; the five standard ones if none.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Repeat for several; all if none.")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Repeat for several; 1 and 2 if none.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every method.")] = 7,
    slow_rounds: Annotated[int, typer.Option(min=1, help="Turns of the slow ones.")] = 3,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples, for every model.")] = None,
    quick: Annotated[
        bool, typer.Option(help="Under a minute: small batches, three rounds, few methods.")
    ] = False,
    large: Annotated[
        bool, typer.Option(help="Also torchvision's ResNet-50 and ViT-B/16, at 224 pixels.")
    ] = False,
    cuda: Annotated[
        bool, typer.Option("--cuda", help="Instead: on this machine's GPU, ResNet-50 and ViT-B/16.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the CSV files.")] = _DEFAULT_OUT,
    methods_from: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    memory: Annotated[bool | None, typer.Option(hidden=True)] = None,
    autocast: Annotated[bool | None, typer.Option(hidden=True)] = None,
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
    from gradood.benchmarking.registry import METHODS
    from gradood.benchmarking.workloads import LARGE, STANDARD, workload

    models = [*(model or STANDARD), *(LARGE if large else ())]
    workloads = [workload(name) for name in dict.fromkeys(models)]
    workloads = [replace(w, batch=batch or w.batch) for w in workloads]
    if cuda:
        from gradood.cli.bench_cuda import on_gpu

        on_gpu(workloads if model or batch else None, out)
        return
    counts = tuple(threads or (1, 2))
    if quick:
        workloads = [replace(w, batch=max(2, w.batch // 4)) for w in workloads]
        method = method or [name for name, one in METHODS.items() if one.quick]
        counts, rounds = counts[:1], min(3, rounds)
    names = with_references(tuple(method or METHODS))
    rows: list[Row] = []
    console = Console()
    write(rows, out / "bench.csv")  # before there are results to lose
    for count in counts:
        with Console(stderr=True).status("") as status:
            for one in workloads:
                status.update(f"{one.model}, {count} threads …")
                rows += run(Job(one, names, count, rounds, slow_rounds))
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
