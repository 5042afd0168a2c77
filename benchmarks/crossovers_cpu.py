"""Time the direct and the Gram algorithm on both sides of each crossover of the cost model.

    python benchmarks/crossovers_cpu.py [--isa amx] [--rounds 15]

Prints the best times in milliseconds of processor time on one thread, what ``gradood.ops.choice``
picks, and by how much the pick is slower than the better algorithm; the last line is the worst.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from gradood.ops import choice, cpp_backend

#: samples, inputs, outputs, size, kernel, stride
CONVOLUTIONS = [
    (32, 512, 512, 4, 3, 1),
    (64, 64, 64, 8, 3, 1),
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
]


def best(call: Callable[[], object], rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times) * 1e3


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
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(cpp_backend.use_instruction_set(options.isa))
    worst = 1.0
    for name, cases, make in (
        ("convolution", CONVOLUTIONS, convolution),
        ("linear", LINEARS, linear),
    ):
        for case in cases:
            call, pick = make(case)
            direct = best(lambda call=call: call("direct"), options.rounds)  # type: ignore[misc]
            gram = best(lambda call=call: call("gram"), options.rounds)  # type: ignore[misc]
            loss = (direct if pick == "direct" else gram) / min(direct, gram)
            worst = max(worst, loss)
            label = f"{name} {case}"
            print(f"{label:44} direct {direct:8.2f}  gram {gram:8.2f}  {pick:10} {loss:.2f}")
    print(f"worst misjudgement: {worst:.2f} times the better algorithm")


if __name__ == "__main__":
    main()
