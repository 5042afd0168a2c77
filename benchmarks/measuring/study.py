"""Run the measurements of a table and turn outcomes into rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone

from benchmarks.measuring.job import Job, Outcome, run, run_together
from benchmarks.measuring.records import Row
from gradood.benchmarking import machine
from gradood.benchmarking.bench import summary, with_references
from gradood.benchmarking.registry import (
    FORWARD_BACKWARD,
    METHODS,
    method,
)
from gradood.benchmarking.workloads import Workload
from gradood.ops import cpp_backend

#: Told what is about to be measured.
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What a table is made of.

    Attributes:
        workloads: Each has a process of its own for every thread count and precision.
        methods: Names; the passes that ratios need are added.
        threads: OpenMP thread counts.
        rounds: At least, for every method; ``slow_rounds`` for the slow ones.
        memory: Measure peak memory too.
        autocast: Measure under bfloat16 autocast too.
        methods_from: Modules whose ``METHODS`` are among them.
        together: Measure all workloads in one process, to be quick: times in float32 only.
    """

    workloads: Sequence[Workload]
    methods: Sequence[str] = tuple(METHODS)
    threads: Sequence[int] = (1,)
    rounds: int = 7
    slow_rounds: int = 3
    memory: bool = True
    autocast: bool = False
    methods_from: Sequence[str] = ()
    together: bool = False


def measure(settings: Settings, progress: Progress = lambda text: None) -> Iterator[list[Row]]:
    """The rows of one workload, thread count and precision at a time."""
    names = with_references(settings.methods)
    if settings.together:
        for threads in settings.threads:
            jobs = [_job(settings, workload, threads, False) for workload in settings.workloads]
            progress(f"{len(jobs)} models, {describe(threads, False)}")
            load = machine.load()
            for job, outcomes in zip(jobs, run_together(jobs), strict=True):
                yield rows(job, outcomes, {}, load)
        return
    for workload in settings.workloads:
        peaks: dict[str, Outcome] = {}
        if settings.memory:
            progress(f"{workload.model}: peak memory of {len(names)} methods")
            peaks = _peaks(workload, names, settings.methods_from)
        for threads in settings.threads:
            for autocast in (False, True) if settings.autocast else (False,):
                job = _job(settings, workload, threads, autocast)
                progress(
                    f"{workload.model}: {len(job.methods)} methods, {describe(threads, autocast)}"
                )
                load = machine.load()
                yield rows(job, run(job), {} if autocast else peaks, load)


def _job(settings: Settings, workload: Workload, threads: int, autocast: bool) -> Job:
    names = with_references(settings.methods)
    names = tuple(name for name in names if method(name).casts or not autocast)
    rounds, slow = settings.rounds, settings.slow_rounds
    modules = tuple(settings.methods_from)
    return Job("time", workload, names, threads, autocast, rounds, slow, modules)


def describe(threads: int, autocast: bool) -> str:
    """A setting in words."""
    return f"{threads} thread{'s' * (threads > 1)}, {_precision(autocast)}"


def rows(
    job: Job, outcomes: Sequence[Outcome], peaks: dict[str, Outcome], load: float
) -> list[Row]:
    """One row a method, with ratios to the reference passes of the same rounds."""
    seconds = {outcome.method: outcome.seconds for outcome in outcomes}
    cpu, features = machine.processor()
    common = dict(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=machine.commit(),
        gradood=machine.installed("gradood"),
        torch=machine.installed("torch"),
        cpu=cpu,
        features=features,
        cores=machine.cores(),
        isa=cpp_backend.instruction_set(),
        load=load,
        threads=job.threads,
        precision=_precision(job.autocast),
        **vars(job.workload),
    )
    return [_row(common, outcome, seconds, peaks) for outcome in outcomes]


def _row(
    common: dict[str, object],
    outcome: Outcome,
    seconds: dict[str, list[float]],
    peaks: dict[str, Outcome],
) -> Row:
    package = method(outcome.method).package
    peak = _megabytes(peaks, outcome.method)
    reference = _megabytes(peaks, FORWARD_BACKWARD)
    return Row(
        **common,  # type: ignore[arg-type]
        method=outcome.method,
        package=package,
        version=machine.installed(package),
        **summary(outcome.method, seconds),
        peak_mb=peak,
        ratio_peak=peak / reference if peak is not None and reference else None,
        checked=outcome.parameters,
        error=outcome.error,
        missing=len(outcome.missing),
        wrong=len(outcome.wrong),
        note=outcome.trouble or _faults(outcome),
    )


def _peaks(workload: Workload, names: Sequence[str], modules: Sequence[str]) -> dict[str, Outcome]:
    """Peak memory of every method, each in a process of its own, on as many cores as there are."""
    jobs = [Job("memory", workload, (name,), methods_from=tuple(modules)) for name in names]
    with ThreadPoolExecutor(min(4, machine.cores())) as pool:
        return {outcome.method: outcome for (outcome,) in pool.map(run, jobs)}


def _megabytes(peaks: dict[str, Outcome], name: str) -> float | None:
    peak = peaks[name].peak if name in peaks else None
    return None if peak is None else peak / 1e6


def _faults(outcome: Outcome) -> str:
    faults = (("missing", outcome.missing), ("wrong", outcome.wrong))
    return "; ".join(f"{what}: {_listed(names)}" for what, names in faults if names)


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return " ".join(names[:4]) + rest


def _precision(autocast: bool) -> str:
    return "bfloat16" if autocast else "float32"
