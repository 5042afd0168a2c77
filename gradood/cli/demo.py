"""``gradood demo``: detectors on the embedded classifier and real pictures, without a network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gradood.cli.report import check_folder, say, versions

if TYPE_CHECKING:
    from gradood.evaluation.demonstration import Demonstration


def demo(
    out: Annotated[Path, typer.Option(help="Folder for index.html and its figures.")] = Path(
        "gradood-demo"
    ),
    seed: Annotated[int, typer.Option(help="Of splits, attacks and fits.")] = 0,
    open_page: Annotated[
        bool, typer.Option("--open/--no-open", help="Show the page in a browser.")
    ] = False,
    images: Annotated[
        int | None,
        typer.Option(min=80, help="Use at most this many pictures of every set, for a quick look."),
    ] = None,
) -> None:
    """Detect anomalous and adversarial pictures with the embedded classifier; makes an HTML page.

    Needs no network, and less than a minute on two cores.
    """
    begin = time.perf_counter()
    check_folder(out, "--out")
    with Console(stderr=True).status("Scoring normal, anomalous and attacked pictures …"):
        from gradood.evaluation.demonstration import demonstrate
        from gradood.evaluation.reports.demo import demo_page

        result = demonstrate(seed, images)
        page = demo_page(result, versions()).write(out)
    seconds = f"{time.perf_counter() - begin:.1f} s in all."
    Console().print(_table(result), *_summary(result), seconds, sep="\n", highlight=False)
    say(f"Page: {page.resolve()}", style="bold")
    if open_page:
        typer.launch(str(page.resolve()))


def _table(result: Demonstration) -> Table:
    from gradood.evaluation.demonstration import DETECTORS
    from gradood.evaluation.reports.demo import mean_metric

    title = "AUROC, below it AUPR and FPR95, in %; anomalous is positive"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("set", no_wrap=True)
    for name in DETECTORS:
        table.add_column(name, justify="right")
    names = ("auroc", "aupr_anomalous", "fpr95")
    for one in result.sets:
        rows = [[getattr(one.metrics[name], metric) for metric in names] for name in DETECTORS]
        table.add_row(one.name, *map(_percentages, rows))
    table.add_section()
    means = [[mean_metric(result, name, metric) for metric in names] for name in DETECTORS]
    table.add_row("mean", *map(_percentages, means), style="bold")
    return table


def _percentages(shares: list[float]) -> str:
    auroc, *others = (f"{100 * share:.1f}" for share in shares)
    return f"{auroc}\n[dim]{'  '.join(others)}[/dim]"


def _summary(result: Demonstration) -> list[str]:
    from gradood.evaluation.demonstration import DEFAULT, EXPLANATIONS

    timing = result.timing
    fit, calibrate, score = result.counts
    explained = [f"{name}: {text}." for name, text in EXPLANATIONS.items()]
    return [
        *explained,
        f"Normal: {fit} pictures to fit, {calibrate} to calibrate, {score} to score, disjoint. "
        "Attacks are compared with their own originals.",
        f"{DEFAULT}, threshold for 5 % false alarms: {result.false_alarms:.1%} on the scored "
        "normal pictures.",
        f"Gradient norms: {timing.images / timing.norms:,.0f} pictures/s "
        f"({timing.images / timing.forward:,.0f} in a forward pass alone); {timing.norms:.1f} s, "
        f"{timing.norms / timing.total:.0%} of the {timing.total:.1f} s computed.",
    ]
