"""Score every detector on CIFAR-10 against other sets, and write the page.

    OMP_NUM_THREADS=1 python -m benchmarks.cifar --data FOLDER [--workers 2] [--fit 5000 …]

FOLDER holds ``weights/cifar10-resnet20.safetensors`` and ``…-resnet56…`` and the sets, in any of
the forms that ``benchmarks.datasets.picture_set`` reads. Writes ``cifar.csv``, ``cifar_cost.csv``,
``cifar.md`` and its figures. What was computed is kept under a hash of its content, so that an
interrupted run goes on; every worker is a process that does one network after the other. What
scores cost is measured where ``cifar_cost.csv`` is not there.
"""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cifar import costs, large
from benchmarks.cifar.costs import ROUNDS
from benchmarks.cifar.page import draw_cost, markdown
from benchmarks.cifar.suite import Protocol, run
from benchmarks.experiments.classifiers import CACHE
from benchmarks.experiments.figures import roc_curves
from benchmarks.experiments.rows import Row, write
from benchmarks.experiments.workers import start

log = logging.getLogger("gradood")

RESULTS = Path(__file__).parents[1] / "results"
USUAL = Protocol()


def main(
    data: Annotated[Path, typer.Option(help="Folder with the sets and weights/.")],
    network: Annotated[list[str] | None, typer.Option(help="Only these, as resnet20.")] = None,
    fit: Annotated[list[int] | None, typer.Option(help="Numbers of normal pictures.")] = None,
    seeds: Annotated[int, typer.Option(help="Random fits of each number.")] = USUAL.seeds,
    count: Annotated[int, typer.Option(help="Pictures a set at most.")] = USUAL.count,
    normal: Annotated[int, typer.Option(help="Normal pictures to score.")] = USUAL.normal,
    attacked: Annotated[int, typer.Option(help="Pictures to attack.")] = USUAL.attacked,
    peers: Annotated[bool, typer.Option(help="Run pytorch-ood's detectors, too.")] = True,
    pictures: Annotated[
        bool, typer.Option(help="Peers that read pictures on every network, not on one alone.")
    ] = True,
    without: Annotated[list[str] | None, typer.Option(help="Detectors to leave out.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    cache: Annotated[Path, typer.Option(help="Folder for what is computed.")] = CACHE,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Run everything that is not in the cache, and write the page."""
    start()
    protocol = Protocol(
        tuple(fit or USUAL.fits),
        seeds,
        count,
        normal,
        attacked,
        peers,
        pictures,
        tuple(without or ()),
    )
    there = sorted(path.stem.removeprefix("cifar10-") for path in (data / "weights").glob("*10-*"))
    there = [name for name in dict.fromkeys(there) if name.startswith("resnet")]
    names = [name for name in there if not network or name in network]
    if not names:
        raise typer.BadParameter(f"no such weights in {data / 'weights'}; there are {there}")
    rows: list[Row] = []
    accuracies: dict[str, float] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), start) as pool:
        done = pool.map(run, names, repeat(data), repeat(cache), repeat(protocol))
        for name, (accuracy, found, curves) in zip(names, done, strict=True):
            accuracies[name] = accuracy
            roc_curves(curves).savefig(output / f"cifar_roc_{name}.png", dpi=110)
            rows += found
            write(rows, output / "cifar.csv")
    if (data / f"{large.NORMAL}.zip").exists() or (data / large.NORMAL).exists():
        rows += large.rows(data, cache, max(3, seeds), protocol.without)
        write(rows, output / "cifar.csv")
    path = output / "cifar_cost.csv"
    if not path.exists():  # a table is of one machine
        costs.measure(data, path, protocol.peers, ROUNDS if seeds > 1 else 1)
    spent = costs.read(path)
    draw_cost(rows, spent, output / "cifar_cost.png")
    page = markdown(rows, spent, accuracies, protocol, _command(network, protocol))
    (output / "cifar.md").write_text(page, encoding="utf-8")
    log.info("%s", output / "cifar.md")


def _command(network: list[str] | None, protocol: Protocol) -> str:
    """What makes this page again."""
    options = [f"--network {name}" for name in network or ()]
    options += [f"--fit {one}" for one in protocol.fits if protocol.fits != USUAL.fits]
    for name in ("seeds", "count", "normal", "attacked"):
        if getattr(protocol, name) != getattr(USUAL, name):
            options.append(f"--{name} {getattr(protocol, name)}")
    options += [] if protocol.peers else ["--no-peers"]
    options += [] if protocol.pictures else ["--no-pictures"]
    options += [f'--without "{name}"' for name in protocol.without]
    return " ".join(["OMP_NUM_THREADS=1 python -m benchmarks.cifar --data FOLDER", *options])


if __name__ == "__main__":
    typer.run(main)
