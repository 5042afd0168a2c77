"""Train, fetch, attack, score, and write the page: everything that is not in the cache yet.

    OMP_NUM_THREADS=1 python -m benchmarks.experiments [--classifier NAME …] [--seeds 3]

Writes ``experiments.csv``, ``cost.csv``, ``experiments.md`` and its figures. Every classifier that
is trained already joins; ``--train`` trains those that are not. ``--small`` uses the pictures in
the package and the committed classifier, to see that everything runs.
"""

from __future__ import annotations

import csv
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.experiments.classifiers import CACHE, CLASSIFIERS, Classifier, prepare
from benchmarks.experiments.cost import Cost, costs
from benchmarks.experiments.figures import draw
from benchmarks.experiments.observations import Observer
from benchmarks.experiments.page import markdown
from benchmarks.experiments.picture_sets import attacked_sets, embedded_suite, near_suite
from benchmarks.experiments.protocols import Study
from benchmarks.experiments.rows import Row, write
from gradood.data import Suite, evaluation_suite

log = logging.getLogger("gradood")

RESULTS = Path(__file__).parents[1] / "results"


def main(
    classifier: Annotated[list[str] | None, typer.Option(help="Only these, as resnet8-1.")] = None,
    seeds: Annotated[int, typer.Option(help="Splits of the committed classifier.", min=1)] = 3,
    count: Annotated[int, typer.Option(help="Pictures a set at most, to be halved.")] = 1000,
    fit: Annotated[int, typer.Option(help="Normal pictures that detectors learn from.")] = 5000,
    attacked: Annotated[int, typer.Option(help="Pictures attacked in each half.")] = 300,
    train: Annotated[bool, typer.Option(help="Train classifiers that are not there.")] = False,
    small: Annotated[bool, typer.Option(help="Embedded pictures only: a quick look.")] = False,
    cache: Annotated[Path, typer.Option(help="Folder for what is computed.")] = CACHE,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Run every part for every classifier that is there, and write the page."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    rows: list[Row] = []
    chosen = [one for one in CLASSIFIERS if not classifier or one.name in classifier]
    for one in chosen[:1] if small else chosen:
        if train:
            prepare(one, cache)
        if not one.ready(cache):
            log.info("%s is not trained: --train does", one.name)
            continue
        # The committed classifier stands for the variance of splits, the others for their own.
        for seed in range(seeds) if one.committed else [one.seed]:
            rows += run(one, seed, count, fit, attacked, small, cache)
    suite = embedded_suite(0) if small else _suite(0, count, fit)
    model = CLASSIFIERS[0].load(cache)
    spent = costs(
        model, suite.fit.images[:500], suite.normal_scored.images[:128], 1 if small else 7
    )
    observer = Observer(model, 10, cache)
    write(rows, output / "experiments.csv")
    _write_costs(spent, output / "cost.csv")
    draw(observer, suite, rows, spent, output)
    (output / "experiments.md").write_text(markdown(rows, spent), encoding="utf-8")
    log.info("%s", output / "experiments.md")


def run(
    one: Classifier, seed: int, count: int, fit: int, attacked: int, small: bool, cache: Path
) -> list[Row]:
    """Every part of the page for one classifier and seed."""
    observer = Observer(one.load(cache), 10 - len(one.held_out), cache)
    study = Study(observer, one.name, seed)
    if one.held_out:
        known, normal, near = near_suite(seed, fit)
        others = {name: images.pixels for name, images in near.items()}
        detectors = study.unsupervised(known, peers=True)
        return study.rows("near", detectors, normal.pixels, others)
    suite = embedded_suite(seed) if small else _suite(seed, count, fit)
    detectors = study.unsupervised(suite.fit, peers=True)
    scored = {name: images.pixels for name, images in suite.anomalous_scored.items()}
    rows = study.rows("sets", detectors, suite.normal_scored.pixels, scored)
    rows += study.supervised(suite)
    log.info("%s, seed %d: sets are scored", one.name, seed)
    attacks = attacked_sets(observer, suite, 20 if small else attacked)
    usable = {name: a for name, a in attacks.items() if min(len(a.scored), len(a.known)) > 1}
    images = {name: a.scored for name, a in usable.items()}
    originals = {name: a.originals for name, a in usable.items()}
    rows += study.rows("attacks", detectors, suite.normal_scored.pixels, images, originals)
    rows += study.supervised_attacks(suite, usable)
    log.info("%s, seed %d: attacks are scored", one.name, seed)
    rows += study.ablations(suite)
    if one.committed and seed == 0:
        rows += study.bf16(suite)
    log.info("%s, seed %d: done", one.name, seed)
    return rows


def _suite(seed: int, count: int, fit: int) -> Suite:
    suite = evaluation_suite(count=count, seed=seed)
    few = slice(None, fit)
    return replace(suite, fit=suite.fit.select(few), normal_known=suite.normal_known.select(few))


def _write_costs(spent: list[Cost], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Cost._fields)
        writer.writerows([[c.what, *(f"{v:.3f}" for v in c[1:])] for c in spent])


if __name__ == "__main__":
    typer.run(main)
