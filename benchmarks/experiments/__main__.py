"""Train, fetch, attack, score, and write the page: everything that is not in the cache yet.

    OMP_NUM_THREADS=1 python -m benchmarks.experiments [--classifier NAME …]

Writes ``experiments.csv``, ``cost.csv``, ``experiments.md`` and its figures. Every classifier that
is trained already joins, and ``--train`` trains those that are not (see ``classifiers.py``).
``--small`` uses the pictures in the package and the committed classifier, to see that all runs.
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.experiments.classifiers import CACHE, CLASSIFIERS, prepare
from benchmarks.experiments.cost import Cost, costs
from benchmarks.experiments.figures import draw
from benchmarks.experiments.observations import Observer
from benchmarks.experiments.page import MAIN, markdown
from benchmarks.experiments.parts import FULL, SMALL, Sizes, rows_of, suite_of
from benchmarks.experiments.rows import Row, write

log = logging.getLogger("gradood")

RESULTS = Path(__file__).parents[1] / "results"


def main(
    classifier: Annotated[list[str] | None, typer.Option(help="Only these, as resnet8-1.")] = None,
    count: Annotated[int, typer.Option(help="Pictures a set at most, to be halved.")] = FULL.count,
    fit: Annotated[int, typer.Option(help="Normal pictures to learn from.")] = FULL.fit,
    normal: Annotated[int, typer.Option(help="Normal pictures to score.")] = FULL.normal,
    attacked: Annotated[int, typer.Option(help="Attacked in each half.")] = FULL.attacked,
    train: Annotated[bool, typer.Option(help="Train classifiers that are not there.")] = False,
    small: Annotated[bool, typer.Option(help="Embedded pictures only: a quick look.")] = False,
    cache: Annotated[Path, typer.Option(help="Folder for what is computed.")] = CACHE,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Run every part for every classifier that is there, and write the page."""
    # Only what is said here: pytorch-ood and foolbox talk a lot.
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(1)
    rows: list[Row] = []
    sizes = SMALL if small else Sizes(count, fit, normal, attacked)
    chosen = [one for one in CLASSIFIERS if not classifier or one.name in classifier]
    for one in chosen[:1] if small else chosen:
        if train:
            prepare(one, cache)
        if not one.ready(cache):
            log.info("%s is not trained: --train does", one.name)
            continue
        # A quarter for the other architectures, which cost more and are there to be compared.
        few = sizes if one.architecture == MAIN else Sizes(*(size // 4 for size in sizes))
        rows += rows_of(one, few, cache)
        write(rows, output / "experiments.csv")
    model, suite = CLASSIFIERS[0].load(cache), suite_of(0, sizes)
    rounds = 1 if small else 5
    spent = costs(model, suite.fit.images[:500], suite.normal_scored.images[:64], rounds)
    _write_costs(spent, output / "cost.csv")
    draw(Observer(model, 10, cache), suite, rows, spent, output)
    command = _command(classifier, sizes)
    (output / "experiments.md").write_text(markdown(rows, spent, command), encoding="utf-8")
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
