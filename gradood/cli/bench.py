"""``gradood bench``: what gradient norms cost on this machine, beside what else there is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from gradood.benchmarking.records import Row
    from gradood.benchmarking.study import Settings

_DEFAULT_OUT = Path("gradood-bench")


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
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    autocast: Annotated[bool, typer.Option(help="Also under bfloat16 autocast.")] = False,
    methods_from: Annotated[
        list[str] | None,
        typer.Option(help="Module with METHODS to measure too; benchmarks.peers in a checkout."),
    ] = None,
    cuda: Annotated[
        bool, typer.Option("--cuda", help="Instead: on this machine's GPU, in bfloat16.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the CSV files and the plot.")] = (
        _DEFAULT_OUT
    ),
) -> None:
    """Time the norms against forward and backward passes and other ways to them; CSV and plot.

    Other packages are measured from a checkout of the repository, with gradood's extra, bench:
    --methods-from benchmarks.peers.
    """
    # Imported late, so that `gradood --help` does not wait for PyTorch.
    from gradood.benchmarking.registry import METHODS, include
    from gradood.benchmarking.study import Settings
    from gradood.benchmarking.workloads import LARGE, STANDARD, workload

    for module in methods_from or ():
        include(module)
    models = [*(model or STANDARD), *(LARGE if large else ())]
    workloads = [workload(name) for name in dict.fromkeys(models)]
    if cuda:
        from gradood.cli.bench_cuda import on_gpu

        on_gpu([replace(w, batch=batch or w.batch) for w in workloads], out)
        return
    settings = Settings(
        [replace(w, batch=batch) for w in workloads] if batch else workloads,
        tuple(method or METHODS),
        tuple(threads or (1, 2)),
        rounds,
        slow_rounds,
        memory,
        autocast,
        tuple(methods_from or ()),
    )
    _tables(_quick(settings) if quick else settings, out)


def _quick(settings: Settings) -> Settings:
    """A quarter of the samples, one thread count, three rounds, nothing slow."""
    from gradood.benchmarking.registry import METHODS

    return replace(
        settings,
        workloads=[replace(w, batch=max(2, w.batch // 4)) for w in settings.workloads],
        methods=tuple(n for n, m in METHODS.items() if m.quick)
        if set(settings.methods) == set(METHODS)
        else settings.methods,
        threads=settings.threads[:1],
        rounds=min(3, settings.rounds),
        memory=False,
        autocast=False,
        together=True,
    )


def _tables(settings: Settings, out: Path) -> None:
    from gradood.benchmarking import report
    from gradood.benchmarking.plot import draw
    from gradood.benchmarking.records import Row, append, prepare
    from gradood.benchmarking.study import measure

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
    from gradood.benchmarking.report import setting, summary

    tables = []
    for name in dict.fromkeys(map(setting, rows)):
        chosen = [r for r in rows if setting(r) == name]
        tables.append(summary(chosen, "ratio_forward_backward", f"Time / (b), {name}"))
    weighed = [r for r in rows if r.peak_mb is not None]
    if weighed:
        tables.append(summary(weighed, "peak_mb", "Peak memory above model and input, MB"))
    return tables
