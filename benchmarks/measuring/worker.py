"""The measuring process: ``Job``s as JSON on standard input, ``Outcome``s on standard output.

Started by ``job.run`` with the threads and the allocator of the jobs in its environment.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial

import torch

from benchmarks.measuring.check import compare, expected
from benchmarks.measuring.job import Job, Outcome
from benchmarks.measuring.memory import peak_bytes
from benchmarks.measuring.others import include
from gradood.benchmarking.machine import installed
from gradood.benchmarking.methods import Call, Norms
from gradood.benchmarking.registry import method
from gradood.benchmarking.timing import take_turns
from gradood.errors import first_line


def main() -> None:
    """Measure the jobs that standard input describes."""
    jobs = [Job.from_fields(fields) for fields in json.load(sys.stdin)]
    for module in jobs[0].methods_from:
        include(module)
    torch.set_num_threads(jobs[0].threads)
    warnings.simplefilter("ignore")  # of peers, about how they are used or written
    logging.disable(logging.WARNING)
    with redirect_stdout(sys.stderr):
        replies = [[asdict(outcome) for outcome in measure(job)] for job in jobs]
    print(json.dumps(replies))


def measure(job: Job) -> list[Outcome]:
    """Do the job in this process, whose environment it trusts."""
    return _memory(job) if job.task == "memory" else _times(job)


def _times(job: Job) -> list[Outcome]:
    """Check every method once, which also warms it up, then time those that ran."""
    model, x = job.workload.build()
    right: dict[str, Norms] = {}
    rounded: dict[str, Norms] = {}
    outcomes, calls = [], {}
    for name in job.methods:
        outcome = Outcome(name)
        outcomes.append(outcome)
        computes = method(name).computes
        try:
            call = _prepared(job, name)
            found = call(x)
        except Exception as error:  # whatever a peer raises is its result
            outcome.trouble = _reason(name, error)
            continue
        calls[name] = partial(call, x)
        if computes != "nothing":
            if computes not in right:
                right[computes] = expected(model, x, computes)
                rounded[computes] = expected(model, x, computes, torch.float32)
            verdict = compare(found, right[computes], rounded[computes], job.autocast)
            outcome.error, outcome.parameters = verdict.error, verdict.parameters
            outcome.missing, outcome.wrong = list(verdict.missing), list(verdict.wrong)
    rounds = {n: job.slow_rounds if method(n).slow else job.rounds for n in calls}
    seconds = take_turns(calls, rounds)
    for outcome in outcomes:
        outcome.seconds = seconds.get(outcome.method, [])
    return outcomes


def _memory(job: Job) -> list[Outcome]:
    (name,) = job.methods
    outcome = Outcome(name)
    _, x = job.workload.build()
    try:
        call = _prepared(job, name)
        call(x[:2])  # load what stays: libraries, plans
        outcome.peak = peak_bytes(partial(call, x))
    except Exception as error:
        outcome.trouble = _reason(name, error)
    return [outcome]


def _prepared(job: Job, name: str) -> Call:
    """The method, ready, on a model of its own, which it may change."""
    model, _ = job.workload.build()
    return method(name).prepare(model, job.autocast)


def _reason(name: str, error: Exception) -> str:
    package = method(name).package
    if isinstance(error, ModuleNotFoundError) and not installed(package):
        return f"not installed: pip install {package}"
    return f"{type(error).__name__}: {first_line(error)}"


if __name__ == "__main__":
    main()
