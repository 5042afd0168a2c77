"""What a later call of ``gradient_norms`` costs beyond an ordinary pass, where models are small.

``python -m benchmarks.later_calls [--rounds 60] [--save COMMIT]`` prints, for batches of 1 and 8,
the milliseconds of a call, of an ordinary forward and backward pass, and of one to the activations
alone; the difference of the first two; and that difference over the operators of the model, in
microseconds. Medians of interleaved rounds by processor time, one thread. "ResNet-20, 8 x 8" has
the operators of ResNet-20 with next to no arithmetic: what is left is the cost of following them.
``--save`` appends the rows to ``results/later_calls.csv`` as those of a commit.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import gradood
from benchmarks.streaming import append
from gradood.benchmarking.machine import installed, load, processor
from gradood.benchmarking.methods import forward_backward
from gradood.benchmarking.workloads import bce, workload
from tests.gradients.test_third_party import build

RESULTS = Path(__file__).parent / "results"
TIMM = ("convnext_atto", "vit_tiny_patch16_224", "efficientvit_b0")


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Eight samples each."""
    resnet, pictures = workload("resnet20").build()
    mlp, x = workload("mlp").build()
    found = {
        "ResNet-20": (resnet, pictures[:8]),
        "ResNet-20, 8 x 8": (resnet, pictures[:8, :, :8, :8].contiguous()),
        "MLP": (mlp, x[:8]),
    }
    for name in TIMM:
        model, few = build(name)
        found[name] = model, torch.cat([few] * 4)
    return found


class _Counter(TorchFunctionMode):
    """Counts calls of operators, composites and what they are made of."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return function(*args, **(kwargs or {}))


def operators(model: nn.Module, x: Tensor) -> int:
    with _Counter() as counter, torch.no_grad():
        model(x)
    return counter.count


def activations_only(frozen: nn.Module, x: Tensor) -> None:
    x = x.detach().requires_grad_()
    torch.autograd.grad(bce(frozen(x)), [x])


def medians(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Milliseconds of processor time of each, in turn."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 3):
        for call, found in zip(calls, taken, strict=True):
            begin = time.process_time()
            call()
            if number >= 3:
                found.append(1e3 * (time.process_time() - begin))
    return [statistics.median(found) for found in taken]


def row(name: str, model: nn.Module, x: Tensor, rounds: int) -> dict[str, object]:
    frozen = copy.deepcopy(model).requires_grad_(False)
    calls: list[Callable[[], object]] = [
        lambda: gradood.gradient_norms(model, x),
        partial(forward_backward(model, False), x),
        lambda: activations_only(frozen, x),
    ]
    ours, both, alone = medians(calls, rounds)
    count = operators(model, x)
    return {
        "model": name,
        "samples": len(x),
        "operators": count,
        "ours_ms": round(ours, 3),
        "forward_backward_ms": round(both, 3),
        "activations_only_ms": round(alone, 3),
        "beyond_ms": round(ours - both, 3),
        "beyond_us_an_operator": round(1e3 * (ours - both) / count, 1),
        "processor": processor()[0],
        "threads": torch.get_num_threads(),
        "load": round(load(), 1),
        "torch": installed("torch"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks, all by default")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--save", help="the commit that is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (model, x) in networks().items():
        for samples in (1, 8) if not options.names or name in options.names else ():
            rows.append(row(name, model, x[:samples].clone(), options.rounds))
            print("  ".join(map(str, list(rows[-1].values())[:8])), flush=True)
    if options.save:
        append([{**one, "commit": options.save} for one in rows], RESULTS / "later_calls.csv")


if __name__ == "__main__":
    main()
