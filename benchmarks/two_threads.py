"""Whether a second thread helps ``gradient_norms`` as much as it helps an ordinary pass.

``python -m benchmarks.two_threads [MODEL …] [--rounds 9] [--save]`` takes the models of the README
and prints ours / (forward + backward) for one thread and for two. What counts is the processor time
of the thread that calls: it does all that is serial and its share of what is not, and sleeps while
it waits (``OMP_WAIT_POLICY=passive``), so that other work on the machine makes no difference.
Medians of interleaved rounds. ``--save`` appends the rows to ``results/two_threads.csv``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before PyTorch is imported

import torch  # noqa: E402

import gradood  # noqa: E402
from benchmarks.streaming import append  # noqa: E402
from gradood.benchmarking.machine import installed, load, processor  # noqa: E402
from gradood.benchmarking.methods import forward_backward  # noqa: E402
from gradood.benchmarking.workloads import workload  # noqa: E402

RESULTS = Path(__file__).parent / "results"
MODELS = ("mlp", "resnet18", "resnet20", "vit", "depthwise")


def milliseconds(call: Callable[[], object]) -> float:
    begin = time.thread_time()
    call()
    return 1e3 * (time.thread_time() - begin)


def row(name: str, rounds: int, batch: int | None) -> dict[str, object]:
    model, x = workload(name).build()
    x = x[:batch].clone()
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: gradood.gradient_norms(model, x),
        "ordinary": partial(forward_backward(model, False), x),
    }
    taken: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for way, call in calls.items():
                spent = milliseconds(call)
                if number:
                    taken.setdefault((way, threads), []).append(spent)
    found = {key: statistics.median(values) for key, values in taken.items()}
    one, two = (found["ours", n] / found["ordinary", n] for n in (1, 2))
    return {
        "model": name,
        "samples": len(x),
        **{f"{way}_ms_{n}": round(found[way, n], 2) for way, n in found},
        "ratio_1": round(one, 3),
        "ratio_2": round(two, 3),
        "difference": round(two - one, 3),
        "processor": processor()[0],
        "load": round(load(), 1),
        "torch": installed("torch"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models, all by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, help="samples, the model's own number by default")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    rows = []
    for name in options.names or MODELS:
        rows.append(row(name, options.rounds, options.batch))
        print("  ".join(map(str, list(rows[-1].values())[:9])), flush=True)
    if options.save:
        append(rows, RESULTS / "two_threads.csv")


if __name__ == "__main__":
    main()
