"""Train, fetch, attack, score, and write the page: everything that is not in the cache yet.

    OMP_NUM_THREADS=1 python -m benchmarks.experiments [--classifier NAME …]

Writes ``experiments.csv``, ``cost.csv``, ``experiments.md`` and its figures. Every classifier that
is trained already joins, and ``--train`` trains those that are not (see ``classifiers.py``).
``--small`` uses the pictures in the package and the committed classifier, to see that all runs.
"""

from __future__ import annotations

import csv
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

import gradood
from benchmarks.experiments.classifiers import CACHE, CLASSIFIERS, Classifier, prepare
from benchmarks.experiments.cost import Cost, costs
from benchmarks.experiments.figures import draw
from benchmarks.experiments.observations import KNOWN, VERSION, Observer, digest
from benchmarks.experiments.page import markdown
from benchmarks.experiments.picture_sets import attacked_sets, embedded_suite, near_suite
from benchmarks.experiments.protocols import Study
from benchmarks.experiments.rows import Row, read, write
from benchmarks.experiments.tried import fused, tried
from gradood.data import Suite, evaluation_suite

log = logging.getLogger("gradood")

RESULTS = Path(__file__).parents[1] / "results"


class Sizes(NamedTuple):
    """How many pictures: a set at most, to fit on, to score as normal, to attack."""

    count: int
    fit: int
    normal: int
    attacked: int


#: What the page is meant for, and a quick look at the pictures in the package.
FULL, SMALL = Sizes(1000, 5000, 5000, 300), Sizes(24, 120, 120, 20)


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
        path = _path_of_rows(one, sizes, cache)
        if not path.exists():
            start = time.monotonic()
            write(run(one, sizes, cache), path)
            log.info("%s: %.0f s", one.name, time.monotonic() - start)
        rows += read(path)
        write(rows, output / "experiments.csv")
    model, suite = CLASSIFIERS[0].load(cache), _suite(0, sizes)
    rounds = 1 if small else 5
    spent = costs(model, suite.fit.images[:500], suite.normal_scored.images[:64], rounds)
    _write_costs(spent, output / "cost.csv")
    draw(Observer(model, 10, cache), suite, rows, spent, output)
    command = _command(classifier, sizes)
    (output / "experiments.md").write_text(markdown(rows, spent, command), encoding="utf-8")
    log.info("%s", output / "experiments.md")


def run(one: Classifier, sizes: Sizes, cache: Path) -> list[Row]:
    """Every part of the page for one classifier; its seed is that of the splits and fits, too."""
    observer = Observer(one.load(cache), 10 - len(one.held_out), cache)
    study = Study(observer, one.name, one.seed)
    if one.held_out:
        known, normal, near = near_suite(one.seed, sizes.fit)
        others = {name: images.pixels for name, images in near.items()}
        observer.observe([known.pixels, normal.pixels[: sizes.normal], *others.values()])
        detectors = study.unsupervised(known, peers=True)
        rows = study.rows("near", detectors, normal.pixels[: sizes.normal], others)
        if one.seed == 0:
            tried_near = fused(study, known)
            rows += study.rows("tried, near", tried_near, normal.pixels[: sizes.normal], others)
        return rows
    suite = _suite(one.seed, sizes)
    scored = {name: images.pixels for name, images in suite.anomalous_scored.items()}
    observer.observe([suite.fit.pixels, suite.normal_scored.pixels, *scored.values()])
    known = [images.pixels for images in suite.anomalous_known.values()]
    observer.observe([suite.normal_known.pixels, *known], KNOWN)
    log.info("%s: sets are observed", one.name)
    detectors = study.unsupervised(suite.fit, peers=True)
    rows = study.rows("sets", detectors, suite.normal_scored.pixels, scored)
    rows += study.supervised(suite)
    log.info("%s: sets are scored", one.name)
    attacks = attacked_sets(observer, suite, sizes.attacked)
    usable = {name: a for name, a in attacks.items() if min(len(a.scored), len(a.known)) > 1}
    images = {name: a.scored for name, a in usable.items()}
    observer.observe(images.values())
    observer.observe([a.known for a in usable.values()], KNOWN)
    originals = {name: a.originals for name, a in usable.items()}
    rows += study.rows("attacks", detectors, suite.normal_scored.pixels, images, originals)
    rows += study.supervised_attacks(suite, usable)
    log.info("%s: attacks are scored", one.name)
    rows += study.ablations(suite)
    if one.committed:
        rows += study.bf16(suite) + tried(study, suite, usable)
    return rows


def _path_of_rows(one: Classifier, sizes: Sizes, cache: Path) -> Path:
    """Where the rows of one run are kept: under a hash of the weights, the sizes and the code."""
    here, package = Path(__file__).parent, Path(gradood.__file__).parent
    code = [
        *(here / f"{name}.py" for name in ("peers", "picture_sets", "protocols", "tried")),
        *package.glob("detectors/*.py"),
    ]
    code += [*package.glob("attacks/*.py"), package / "data/suite.py"]
    parts = [path.read_bytes() for path in sorted(code)]
    parts += [t.numpy().tobytes() for t in one.load(cache).state_dict().values()]
    parts.append(f"{one.seed} {sizes} {VERSION} {torch.__version__}".encode())
    return cache / "rows" / f"{one.name}-{digest(parts)[:12]}.csv"


def _suite(seed: int, sizes: Sizes) -> Suite:
    if sizes == SMALL:
        return embedded_suite(seed, sizes.count)
    suite = evaluation_suite(count=sizes.count, seed=seed)
    few = slice(None, sizes.fit)
    return replace(
        suite,
        fit=suite.fit.select(few),
        normal_known=suite.normal_known.select(few),
        normal_scored=suite.normal_scored.select(slice(None, sizes.normal)),
    )


def _command(classifier: list[str] | None, sizes: Sizes) -> str:
    """What makes this page again."""
    options = [f"--classifier {name}" for name in classifier or ()] or ["--train"]
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
