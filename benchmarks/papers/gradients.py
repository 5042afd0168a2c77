"""The first paper's tables on CIFAR-10: supervised detectors on norms, attacks, adaptive attacks.

    OMP_NUM_THREADS=1 python -m benchmarks.papers.gradients --data FOLDER [--workers 2]

FOLDER as for ``benchmarks.cifar``. Writes ``paper_gradients.csv`` and ``paper_gradients.md``. What
was computed is kept under a hash of its content, so that an interrupted run goes on.
"""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.experiments.classifiers import CACHE
from benchmarks.experiments.rows import Row, write
from benchmarks.experiments.workers import start
from benchmarks.papers.page import markdown
from benchmarks.papers.replication import MAIN, Sizes, run

log = logging.getLogger("gradood")

RESULTS = Path(__file__).parents[1] / "results"
NETWORKS = [MAIN, "resnet56"]
USUAL = Sizes()


def main(
    data: Annotated[Path, typer.Option(help="Folder with the sets and weights/.")],
    network: Annotated[list[str] | None, typer.Option(help="Only these, as resnet20.")] = None,
    each: Annotated[int, typer.Option(help="Pictures a set at most.")] = USUAL.each,
    normal: Annotated[int, typer.Option(help="Normal pictures.")] = USUAL.normal,
    fit: Annotated[int, typer.Option(help="Normal pictures to fit on.")] = USUAL.fit,
    attacked: Annotated[int, typer.Option(help="Pictures to attack.")] = USUAL.attacked,
    adaptive: Annotated[int, typer.Option(help="Pictures for adaptive attacks.")] = USUAL.adaptive,
    steps: Annotated[int, typer.Option(help="Steps of adaptive attacks.")] = USUAL.steps,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    cache: Annotated[Path, typer.Option(help="Folder for what is computed.")] = CACHE,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Compute every part that is not in the cache, and write the page."""
    start()
    sizes = Sizes(each, normal, fit, attacked, adaptive, steps)
    rows: list[Row] = []
    accuracies: dict[str, float] = {}
    names = network or NETWORKS
    with ProcessPoolExecutor(workers, get_context("spawn"), start) as pool:
        done = pool.map(run, names, repeat(data), repeat(cache), repeat(sizes))
        for name, (accuracy, found) in zip(names, done, strict=True):
            accuracies[name] = accuracy
            rows += found
            write(rows, output / "paper_gradients.csv")
    page = markdown(rows, accuracies, sizes, _command(network, sizes))
    (output / "paper_gradients.md").write_text(page, encoding="utf-8")
    log.info("%s", output / "paper_gradients.md")


def _command(network: list[str] | None, sizes: Sizes) -> str:
    """What makes this page again."""
    options = [f"--network {name}" for name in network or ()]
    given = zip(Sizes._fields, sizes, USUAL, strict=True)
    options += [f"--{name} {value}" for name, value, usual in given if value != usual]
    command = "OMP_NUM_THREADS=1 python -m benchmarks.papers.gradients --data FOLDER"
    return " ".join([command, *options])


if __name__ == "__main__":
    typer.run(main)
