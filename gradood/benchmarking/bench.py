"""Times of gradient norms beside ordinary passes: ``gradood bench``.

Methods take turns in a process of its own for each thread count, so that threads and allocator are
fixed when it starts. The whole harness, with other packages and peak memory, is
``benchmarks.measuring`` in a checkout.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gradood.benchmarking import machine
from gradood.benchmarking.registry import ACTIVATION_ONLY, FORWARD_BACKWARD, METHODS, method
from gradood.benchmarking.timing import paired_ratio, percentile, take_turns
from gradood.benchmarking.workloads import Workload
from gradood.errors import GradoodError, InputError, first_line

#: The allocator keeps what it has, so that no method pays for pages that another returned.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}


@dataclass(frozen=True)
class Row:
    """One method on one workload.

    Attributes:
        threads: OpenMP threads.
        median_s, p20_s, p80_s: Seconds a call.
        ratio_forward_backward, ratio_activation_only: Medians over rounds of the time divided by
            that of an ordinary forward + backward pass, and of a forward pass with a backward pass
            that computes no parameter's gradient, in the same round.
        note: Why there is no measurement.
    """

    model: str
    batch: int
    threads: int
    method: str
    rounds: int = 0
    median_s: float | None = None
    p20_s: float | None = None
    p80_s: float | None = None
    ratio_forward_backward: float | None = None
    ratio_activation_only: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Job:
    """What one process measures: ``rounds`` turns a method, ``slow_rounds`` a slow one."""

    workload: Workload
    methods: tuple[str, ...]
    threads: int = 1
    rounds: int = 7
    slow_rounds: int = 3


def run(job: Job) -> list[Row]:
    """Measure in a fresh interpreter.

    Raises:
        GradoodError: It died.
    """
    done = subprocess.run(
        [sys.executable, "-m", "gradood.benchmarking.bench"],
        input=json.dumps(asdict(job)),
        env=environment(job.threads, os.environ),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise GradoodError(f"{job.workload.model}: measuring ended with {done.returncode}: {last}")
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def environment(threads: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment that holds threads and allocator fixed."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    fixed = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    return {**inherited, **fixed, **ALLOCATOR}


def measure(job: Job) -> list[Row]:
    """Measure here. Every method runs once before it is timed."""
    model, x = job.workload.build()
    calls, troubles = {}, {}
    for name in with_references(job.methods):
        try:
            call = partial(method(name).prepare(job.workload.build()[0], False), x)
            call()
            calls[name] = call
        except Exception as error:  # the others are measured
            troubles[name] = f"{type(error).__name__}: {first_line(error)}"
    rounds = {n: job.slow_rounds if METHODS[n].slow else job.rounds for n in calls}
    seconds = take_turns(calls, rounds)
    of = (job.workload.model, job.workload.batch, job.threads)
    return [
        Row(*of, name, **summary(name, seconds), note=troubles.get(name, ""))
        for name in with_references(job.methods)
    ]


def summary(name: str, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What a row says of a method's times; None where it, or what a ratio is taken to, has none."""

    def ratio(reference: str) -> float | None:
        other = seconds.get(reference)
        return paired_ratio(own, other) if own and other else None

    own = seconds.get(name) or ()
    return {
        "rounds": len(own),
        "median_s": statistics.median(own) if own else None,
        "p20_s": percentile(own, 0.2) if own else None,
        "p80_s": percentile(own, 0.8) if own else None,
        "ratio_forward_backward": ratio(FORWARD_BACKWARD),
        "ratio_activation_only": ratio(ACTIVATION_ONLY),
    }


def with_references(names: Sequence[str]) -> tuple[str, ...]:
    """The methods and what their ratios are taken to, in the registry's order."""
    wanted = {ACTIVATION_ONLY, FORWARD_BACKWARD, *names}
    for name in wanted:
        method(name)
    return tuple(name for name in METHODS if name in wanted)


def write(rows: Sequence[Row], path: Path) -> None:
    """A CSV file in which every row says what it was measured with.

    Raises:
        InputError: It cannot be written.
    """
    cpu, features = machine.processor()
    common = {
        "gradood": machine.installed("gradood"),
        "torch": machine.installed("torch"),
        "cpu": cpu,
        "features": features,
        "cores": machine.cores(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            columns = [*common, *(field.name for field in fields(Row))]
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({**common, **asdict(row)} for row in rows)
    except OSError as error:
        raise InputError(f"cannot write results to {path}: {error.strerror}") from error


def main() -> None:
    """Answer the job on standard input."""
    asked = json.load(sys.stdin)
    job = Job(**{**asked, "workload": Workload(**asked["workload"])})
    torch.set_num_threads(job.threads)
    print(json.dumps([asdict(row) for row in measure(job)]))


if __name__ == "__main__":
    main()
