"""What the first call costs, in forward + backward passes on the same batch.

``python -m benchmarks.first_call`` takes the models of ``tests/gradients/test_third_party.py``, two
samples each or so many as ``--batch`` says, and prints (first call − later call) / (forward +
backward), medians of three rounds, by processor time: the price of finding out what a model does,
which later calls do not pay.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import gradood
from gradood.benchmarking.machine import load, processor
from tests.gradients.test_third_party import OTHERS, TIMM, TORCHVISION, build


def processor_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()  # other work on the machine does not count
    run()
    return time.process_time() - start


def ordinary(model: nn.Module, x: Tensor) -> None:
    model.train().eval()  # some models keep graphs from pass to pass until then
    out = model(x)
    logits = getattr(out, "logits", out)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


def passes(model: nn.Module, x: Tensor, rounds: int) -> float:
    """The price of the first call, in ordinary passes."""
    found = []
    for _ in range(rounds):
        fresh = copy.deepcopy(model)
        ordinary(fresh, x)
        first = processor_seconds(lambda fresh=fresh: gradood.gradient_norms(fresh, x))
        later = min(
            processor_seconds(lambda fresh=fresh: gradood.gradient_norms(fresh, x))
            for _ in range(3)
        )
        unit = min(processor_seconds(lambda fresh=fresh: ordinary(fresh, x)) for _ in range(3))
        found.append((first - later) / unit)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models, all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2, help="samples; an even number")
    options = parser.parse_args()
    print(f"{processor()[0]}, {torch.get_num_threads()} threads, load {load():.1f}")
    gradood.gradient_norms(nn.Linear(3, 2), torch.ones(2, 3))  # imports, the table of rules
    found = []
    for name in options.names or (*TORCHVISION, *TIMM, *OTHERS):
        model, x = build(name)
        x = torch.cat([x] * (options.batch // len(x)))
        found.append(passes(model, x, options.rounds))
        print(f"{name:<32} {found[-1]:6.1f}", flush=True)
    print(f"{'median':<32} {statistics.median(found):6.1f}")


if __name__ == "__main__":
    main()
