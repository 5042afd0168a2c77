"""Time the direct and the Gram algorithm on both sides of each crossover of the cost model.

    python benchmarks/crossovers_cpu.py [--isa amx] [--threads 2] [--rounds 15] [--save]

Prints the best times in milliseconds (of processor time on one thread, of wall time on more), what
``gradood.ops.choice`` picks, and by how much the pick is slower than the better algorithm; then the
worst of these, and the costs with which picks would lose least. ``--save`` writes them into
``gradood/ops/crossovers.csv``, from which every choice is made.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from gradood.benchmarking.machine import processor
from gradood.ops import choice, cpp_backend

TABLE = Path(choice.__file__).with_name("crossovers.csv")

#: samples, inputs, outputs, size, kernel, stride
CONVOLUTIONS = [
    (32, 512, 512, 4, 3, 1),
    (64, 64, 64, 8, 3, 1),
    (64, 32, 32, 8, 3, 1),
    (64, 16, 16, 8, 3, 1),
    (64, 48, 48, 10, 3, 1),
    (64, 32, 64, 16, 3, 2),
    (64, 16, 32, 16, 3, 2),
    (64, 64, 64, 5, 5, 1),
    (32, 128, 128, 8, 3, 1),
    (32, 32, 32, 16, 3, 1),
    (32, 64, 64, 16, 3, 1),
    (32, 128, 128, 16, 3, 1),
    (32, 256, 256, 16, 3, 1),
    (16, 128, 128, 32, 3, 1),
    (8, 256, 256, 28, 3, 1),
    (32, 64, 128, 16, 3, 2),
    (32, 128, 256, 16, 3, 2),
    (32, 64, 128, 32, 3, 2),
    (64, 256, 256, 8, 1, 1),
    (64, 64, 128, 8, 1, 1),
    (64, 64, 64, 16, 1, 1),
    (64, 128, 128, 16, 1, 1),
    (32, 256, 256, 16, 1, 1),
    (8, 512, 512, 28, 1, 1),
]
#: samples, tokens, inputs, outputs
LINEARS = [
    (32, 16, 128, 128),
    (32, 32, 128, 128),
    (32, 50, 384, 384),
    (32, 64, 192, 192),
    (32, 64, 192, 768),
    (16, 128, 256, 256),
    (32, 197, 192, 192),
    (16, 197, 192, 768),
    (8, 197, 768, 768),
    (16, 110, 96, 96),
    (16, 160, 192, 192),
    (16, 176, 192, 192),
    (16, 220, 192, 192),
    (16, 250, 192, 192),
    (16, 256, 256, 256),
    (8, 256, 128, 512),
    (8, 300, 128, 512),
]


class Work(NamedTuple):
    """Multiply-adds of one sample: of the direct algorithm, of Gram matrices, of shifted sums, and
    of Winograd's algorithm where it serves."""

    direct: float
    gram: float
    shifted: float
    winograd: float = math.inf


def best(call: Callable[[], object], rounds: int) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    times = []
    for _ in range(rounds):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times) * 1e3


def work_of_convolution(case: tuple[int, ...]) -> Work:
    _, inputs, outputs, size, kernel, stride = case
    seen, out, taps = size**2, (size // stride) ** 2, kernel**2
    gram = ((seen / stride) ** 2 * inputs + out**2 * outputs) / 2
    side = size // stride
    winograd = choice.winograd_products(inputs, (outputs, side, side))
    serves = kernel == 3 and stride == 1
    shifted = out**2 * taps if taps > 1 else 0
    return Work(outputs * inputs * taps * out, gram, shifted, winograd if serves else math.inf)


def work_of_linear(case: tuple[int, ...]) -> Work:
    _, tokens, inputs, outputs = case
    return Work(tokens * inputs * outputs, tokens**2 * (inputs + outputs) / 2, 0)


def fitted(timed: list[tuple[str, Work, float, float]]) -> choice.Costs:
    """Costs whose picks lose least, from (kind, work, times) rows; in the middle of the best."""

    def lost(kind: str, gram: float, shift: float = 0, winograd: float = 4) -> float:
        product = 1.0
        for of_kind, work, direct, other in timed:
            cheaper = min(work.direct, winograd * work.winograd)
            picked = other if gram * work.gram + shift * work.shifted < cheaper else direct
            product *= picked / min(direct, other) if of_kind == kind else 1
        return product

    grams = [0.8 + 0.05 * i for i in range(30)]
    triples = itertools.product(grams[::2], range(2, 12), [1 + 0.15 * i for i in range(10)])
    (gram,) = middle_best([(gram,) for gram in grams], lambda o: lost("linear", *o))
    pixel_gram, shift, winograd = middle_best(list(triples), lambda o: lost("convolution", *o))
    return choice.Costs(gram, pixel_gram, shift, phases=True, winograd=winograd)


def middle_best(
    options: Sequence[tuple[float, ...]], lost: Callable[[tuple[float, ...]], float]
) -> tuple[float, ...]:
    """The one nearest to the mean of those that lose least."""
    losses = [lost(option) for option in options]
    best = [o for o, loss in zip(options, losses, strict=True) if loss < 1.001 * min(losses)]
    middle = [statistics.mean(numbers) for numbers in zip(*best, strict=True)]
    return min(best, key=lambda o: sum((a / b - 1) ** 2 for a, b in zip(o, middle, strict=True)))


def save(isa: str, costs: choice.Costs) -> None:
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = {row["isa"]: row for row in csv.DictReader(file)}
    numbers = {c: f"{getattr(costs, c):.2f}" for c in ("gram", "pixel_gram", "shift", "winograd")}
    rows[isa] = {"isa": isa, **numbers, "cpu": processor()[0]}
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[isa]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())


def convolution(case: tuple[int, ...]) -> tuple[Callable[[str], object], str]:
    samples, inputs, outputs, size, kernel, stride = case
    pad = kernel // 2
    out = (size + 2 * pad - kernel) // stride + 1
    x, d = torch.randn(samples, inputs, size, size), torch.randn(samples, outputs, out, out)
    geometry = ((kernel,) * 2, (stride,) * 2, (pad,) * 2, (1, 1))
    pick = cpp_backend.algorithm("conv_sqnorm", x, d, *geometry, 1)
    if pick == "pointwise":
        costs = choice.CPP[cpp_backend.instruction_set()]
        pick = choice.linear(out * out, inputs, outputs, costs, pixels=True)
    return lambda kind: cpp_backend.conv_sqnorm(x, d, *geometry, 1, False, kind), pick


def linear(case: tuple[int, ...]) -> tuple[Callable[[str], object], str]:
    samples, tokens, inputs, outputs = case
    x, d = torch.randn(samples, tokens, inputs), torch.randn(samples, tokens, outputs)
    pick = cpp_backend.algorithm("linear_sqnorm", x, d)
    x, d = x.transpose(1, 2), d.transpose(1, 2)
    geometry = ((1,), (1,), (0,), (1,))
    return lambda kind: cpp_backend.conv_sqnorm(x, d, *geometry, 1, False, kind), pick


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    isa = cpp_backend.use_instruction_set(options.isa)
    print(f"{processor()[0]}, {isa}, {options.threads} thread(s)")
    worst, timed = 1.0, []
    for name, cases, make, work_of in (
        ("convolution", CONVOLUTIONS, convolution, work_of_convolution),
        ("linear", LINEARS, linear, work_of_linear),
    ):
        for case in cases:
            call, pick = make(case)
            direct = best(lambda call=call: call("direct"), options.rounds)  # type: ignore[misc]
            gram = best(lambda call=call: call("gram"), options.rounds)  # type: ignore[misc]
            timed.append((name, work_of(case), direct, gram))
            loss = (direct if pick == "direct" else gram) / min(direct, gram)
            worst = max(worst, loss)
            label = f"{name} {case}"
            print(f"{label:44} direct {direct:8.2f}  gram {gram:8.2f}  {pick:10} {loss:.2f}")
    print(f"worst misjudgement: {worst:.2f} times the better algorithm")
    costs = fitted(timed)
    print(f"in use {choice.CPP[isa]}")
    print(f"fitted {costs}")
    if options.save:
        save(isa, costs)


if __name__ == "__main__":
    main()
