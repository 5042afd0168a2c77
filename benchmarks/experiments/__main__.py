"""Train, fetch, attack, score, and write the page: everything that is not in the cache yet.

    OMP_NUM_THREADS=1 python -m benchmarks.experiments --train [--workers 2] [--classifier NAME …]

Writes ``experiments.csv``, ``cost.csv``, ``experiments.md`` and its figures. Every classifier that
is trained already joins, and ``--train`` trains those that are not (see ``classifiers.py``). Every
worker is a process that does one classifier after the other, one thread each.
``--small`` uses the pictures in the package and the committed classifier, to see that all runs.
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.experiments.classifiers import CACHE, CLASSIFIERS, MAIN
from benchmarks.experiments.cost import Cost, costs
from benchmarks.experiments.figures import draw
from benchmarks.experiments.observations import Observer
from benchmarks.experiments.page import markdown
from benchmarks.experiments.parts import FULL, SMALL, Sizes, suite_of
from benchmarks.experiments.rows import Row, write
from benchmarks.experiments.workers import rows_of_all, start

log = logging.getLogger("gradood")

RESULTS = Path(__file__).parents[1] / "results"


def main(
    classifier: Annotated[list[str] | None, typer.Option(help="Only these, as resnet8-1.")] = None,
    count: Annotated[int, typer.Option(help="Pictures a set at most, to be halved.")] = FULL.count,
    fit: Annotated[int, typer.Option(help="Normal pictures to learn from.")] = FULL.fit,
    normal: Annotated[int, typer.Option(help="Normal pictures to score.")] = FULL.normal,
    attacked: Annotated[int, typer.Option(help="Attacked in each half.")] = FULL.attacked,
    train: Annotated[bool, typer.Option(help="Train classifiers that are not there.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    small: Annotated[bool, typer.Option(help="Embedded pictures only: a quick look.")] = False,
    cache: Annotated[Path, typer.Option(help="Folder for what is computed.")] = CACHE,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Run every part for every classifier that is there, and write the page."""
    start()
    names = [one.name for one in CLASSIFIERS]
    if unknown := set(classifier or ()).difference(names):
        raise typer.BadParameter(f"no {', '.join(unknown)}: there are {', '.join(names)}")
    rows: list[Row] = []
    sizes = SMALL if small else Sizes(count, fit, normal, attacked)
    chosen = [one for one in CLASSIFIERS if not classifier or one.name in classifier]
    chosen = chosen[:1] if small else chosen
    ready = [one for one in chosen if train or one.ready(cache)]
    for one in chosen:
        if one not in ready:
            log.info("%s is not trained: --train does", one.name)
    for found in rows_of_all(ready, sizes, cache, workers):
        rows += found
        write(rows, output / "experiments.csv")
    if not any(row.part == "sets" and row.classifier.startswith(f"{MAIN}-") for row in rows):
        log.info("%s, but no page: that needs a %s", output / "experiments.csv", MAIN)
        return
    model, suite = CLASSIFIERS[0].load(cache), suite_of(0, sizes)
    rounds = 1 if small else 5
    spent = costs(model, suite.fit.images[:500], suite.normal_scored.images[:64], rounds)
    _write_costs(spent, output / "cost.csv")
    draw(Observer(model, 10, cache), suite, rows, spent, output)
    command = _command(classifier, sizes)
    trained = {one.name: one.metadata(cache) for one in ready}
    page = markdown(rows, spent, trained, command)
    (output / "experiments.md").write_text(page, encoding="utf-8")
    log.info("%s", output / "experiments.md")


def _command(classifier: list[str] | None, sizes: Sizes) -> str:
    """What makes this page again."""
    options = ["--train", *(f"--classifier {name}" for name in classifier or ())]
    given = zip(Sizes._fields, sizes, FULL, strict=True)
    options += [f"--{name} {value}" for name, value, usual in given if value != usual]
    options = ["--small"] if sizes == SMALL else options
    return f"OMP_NUM_THREADS=1 python -m benchmarks.experiments {' '.join(options)}"


def _write_costs(spent: list[Cost], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Cost._fields)
        writer.writerows([[c.what, *(f"{v:.3f}" for v in c[1:])] for c in spent])


if __name__ == "__main__":
    typer.run(main)
