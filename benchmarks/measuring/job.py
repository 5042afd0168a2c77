"""Measurements in a process of their own: what is asked, what comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gradood.benchmarking import bench
from gradood.benchmarking.workloads import Workload

#: For times, the allocator keeps what it has, so that no method pays for pages that another
#: returned; for memory it returns at once what is freed, so that resident pages are live ones.
ALLOCATOR = {
    "time": bench.ALLOCATOR,
    "memory": {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
}


@dataclass(frozen=True)
class Job:
    """Measure the methods on the workload.

    Attributes:
        task: ``"time"``, or ``"memory"`` for exactly one method.
        rounds: How often each method has its turn; ``slow_rounds`` for slow ones.
        methods_from: Modules whose ``METHODS`` are measured too; see ``others.include``.
    """

    task: str
    workload: Workload
    methods: tuple[str, ...]
    threads: int = 1
    autocast: bool = False
    rounds: int = 7
    slow_rounds: int = 3
    methods_from: tuple[str, ...] = ()

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Job:
        """The job of which ``asdict`` made ``fields``, by way of JSON."""
        workload = Workload(**fields["workload"])
        lists = {name: tuple(fields[name]) for name in ("methods", "methods_from")}
        return cls(**{**fields, **lists, "workload": workload})


@dataclass
class Outcome:
    """What one method did.

    Attributes:
        seconds: A call, one entry a round.
        peak: Bytes above model and input.
        error, missing, wrong, parameters: As in ``check.Verdict``; None and empty unchecked.
        trouble: Why there is no measurement.
    """

    method: str
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    error: float | None = None
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    parameters: int = 0
    trouble: str = ""


def run(job: Job) -> list[Outcome]:
    """Run the job in a fresh interpreter; a process that dies is every method's trouble."""
    return run_together([job])[0]


def run_together(jobs: Sequence[Job]) -> list[list[Outcome]]:
    """Run jobs of one task and thread count one after the other, in one fresh interpreter.

    Saves the time to start one for each, at the price that an earlier job's memory is around.
    """
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.measuring.worker"],
        input=json.dumps([asdict(job) for job in jobs]),
        env=environment(jobs[0], os.environ),
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        trouble = f"process ended with status {process.returncode}: {last}"
        return [[Outcome(name, trouble=trouble) for name in job.methods] for job in jobs]
    replies = json.loads(process.stdout.splitlines()[-1])
    return [[Outcome(**fields) for fields in reply] for reply in replies]


def environment(job: Job, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment that holds threads and allocator fixed."""
    # What is importable here is importable there: modules of ``methods_from``.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    fixed = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(job.threads), "OMP_WAIT_POLICY": "passive"}
    return {**inherited, **fixed, **ALLOCATOR[job.task]}
