"""Processes that each do one classifier after the other, on one thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.experiments.classifiers import MAIN, Classifier, prepare
from benchmarks.experiments.parts import Sizes, rows_of
from benchmarks.experiments.rows import Row

log = logging.getLogger("gradood")


def start() -> None:
    """What every process begins with."""
    # Only what is said here: pytorch-ood and foolbox talk a lot.
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(1)


def rows_of_all(
    classifiers: Sequence[Classifier], sizes: Sizes, cache: Path, workers: int
) -> Iterator[list[Row]]:
    """The rows of each in their order, whichever is done first; trained first where need be."""
    with ProcessPoolExecutor(workers, get_context("spawn"), start) as pool:
        yield from pool.map(_prepared_rows, classifiers, repeat(sizes), repeat(cache))


def _prepared_rows(one: Classifier, sizes: Sizes, cache: Path) -> list[Row]:
    begun = time.monotonic()
    prepare(one, cache)
    # A quarter for the other architectures, which cost more and are there to be compared.
    few = sizes if one.architecture == MAIN else Sizes(*(size // 4 for size in sizes))
    found = rows_of(one, few, cache)
    log.info("%s: %.0f s", one.name, time.monotonic() - begun)
    return found
