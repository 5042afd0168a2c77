"""BackPACK and Opacus beside ours on the models of ``processors.py``, where they are right.

    python -m benchmarks.processor_peers [--models vit128 swin …] [--rounds 3] [--save]

One line a model and package: how many of the parameters it gives norms of, whether these are right
(each against plain autograd in a loop, to a part in a thousand), and the median over interleaved
rounds of its processor time over ours for all parameters. ``--save`` appends the rows to
``results/processor_peers.csv``. A package that fails on a model is named with its error.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measuring.records import append
from benchmarks.peers import METHODS as PEERS, out_of_place
from benchmarks.processors import CASES, METHODS, Case, processor_seconds, workload
from gradood.benchmarking import machine
from gradood.benchmarking.methods import Call, Norms
from gradood.benchmarking.workloads import bce
from gradood.errors import first_line
from gradood.ops import cpp_backend

RESULTS = Path(__file__).parent / "results" / "processor_peers.csv"
PACKAGES = {"BackPACK": "backpack-for-pytorch", "Opacus ghost": "opacus"}
#: What a norm may be off by, relative to itself and to the largest of its sample.
RIGHT, NOTHING = 1e-3, 1e-6


@dataclass(frozen=True)
class Row:
    """One package on one model."""

    date: str
    commit: str
    cpu: str
    isa: str
    threads: int
    torch: str
    load: float
    model: str
    batch: int
    package: str
    version: str
    #: ``right``, ``wrong for NAME`` or how it failed.
    outcome: str
    given: int
    parameters: int
    over_ours: float | None


def exact(model: nn.Module, x: Tensor) -> Norms:
    """Squared norms of the first two samples, by a loop beside copies of themselves."""
    rows: list[list[float]] = []
    names = [name for name, _ in model.named_parameters()]
    for n in range(2):
        loss = bce(model(x[[n, n]])[:1])
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        rows.append([0.0 if g is None else float(g.double().square().sum()) for g in found])
    return dict(zip(names, torch.tensor(rows, dtype=torch.float64).unbind(1), strict=True))


def wrong(norms: Norms, truth: Norms) -> str | None:
    """The first parameter whose norms are not right."""
    largest = torch.stack(list(truth.values())).amax(0)
    for name, found in norms.items():
        right = truth[name]
        error = (found[:2].double() - right).abs() / torch.maximum(right, NOTHING * largest)
        if not bool((error <= RIGHT).all()):
            return name
    return None


def row(name: str, case: Case, package: str, rounds: int) -> Row:
    """Measure one package on one model."""
    model, x = workload(case)
    truth, over_ours, given = exact(model, x), None, 0
    try:
        call: Call = PEERS[package].prepare(out_of_place(model), False)
        norms = call(x)
        given, bad = len(norms), wrong(norms, truth)
        outcome = f"wrong for {bad}" if bad else "right" if norms else "gives none"
        if norms and not bad:
            ours = METHODS["cpp"](workload(case)[0], False)
            calls = {"ours": lambda: ours(x), "peer": lambda: call(x)}
            for warm in calls.values():
                warm()
            seconds = processor_seconds(calls, rounds)
            pairs = zip(seconds["peer"], seconds["ours"], strict=True)
            over_ours = round(statistics.median(a / b for a, b in pairs), 3)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # whatever the package makes of the model
        outcome = f"fails: {type(error).__name__}: {first_line(error)[:80]}"
    return Row(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=machine.commit(),
        cpu=machine.processor()[0],
        isa=cpp_backend.instruction_set(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        load=machine.load(),
        model=name,
        batch=case.shape[0],
        package=package,
        version=machine.installed(PACKAGES[package]),
        outcome=outcome,
        given=given,
        parameters=len(truth),
        over_ours=over_ours,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name, case in CASES.items():
        if not any(part.lower() in name.lower() for part in options.models):
            continue
        for package in PACKAGES:
            found = row(name, case, package, options.rounds)
            if options.save:
                append(RESULTS, [found])
            times = "" if found.over_ours is None else f"{found.over_ours:6.2f} x ours"
            share = f"{found.given} of {found.parameters}"
            print(f"{name:22} {package:13} {share:12} {times:14} {found.outcome}", flush=True)


if __name__ == "__main__":
    main()
