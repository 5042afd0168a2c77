"""Time the CPU kernels shape by shape: C++ against plain PyTorch, and against another build.

    python benchmarks/kernels_cpu.py [--threads 1] [--rounds 9] [--isa avx512] [--only conv]
                                     [--prototype FOLDER]

Candidates take turns within a round, and the best times are printed, in milliseconds: of processor
time with one thread, which other processes disturb less, of wall time with more. GFLOP/s count two
operations for each multiply-add of the direct algorithm, whichever algorithm ran. ``--prototype``
names a folder that holds a built extension module ``r1kern`` to compare with.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch

from gradood.ops import cpp_backend, torch_backend


class Conv(NamedTuple):
    samples: int
    inputs: int
    outputs: int
    size: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1


class Linear(NamedTuple):
    samples: int
    tokens: int
    inputs: int
    outputs: int


class Norm(NamedTuple):
    kind: str
    samples: int
    channels: int
    positions: int


CASES = {
    "ResNet-18": [
        Conv(32, 3, 64, 32),
        Conv(32, 64, 64, 32),
        Conv(32, 64, 128, 32, stride=2),
        Conv(32, 128, 128, 16),
        Conv(32, 128, 256, 16, stride=2),
        Conv(32, 256, 256, 8),
        Conv(32, 256, 512, 8, stride=2),
        Conv(32, 512, 512, 4),
        Conv(32, 64, 128, 32, kernel=1, stride=2),
        Conv(32, 128, 256, 16, kernel=1, stride=2),
        Conv(32, 256, 512, 8, kernel=1, stride=2),
        Norm("batch", 32, 64, 1024),
        Norm("batch", 32, 128, 256),
        Norm("batch", 32, 512, 16),
    ],
    "ResNet-20": [
        Conv(128, 3, 16, 32),
        Conv(128, 16, 16, 32),
        Conv(128, 16, 32, 32, stride=2),
        Conv(128, 32, 32, 16),
        Conv(128, 32, 64, 16, stride=2),
        Conv(128, 64, 64, 8),
        Norm("batch", 128, 16, 1024),
    ],
    "ViT": [
        Conv(32, 3, 192, 32, kernel=4, stride=4),
        Linear(32, 64, 192, 576),
        Linear(32, 64, 192, 192),
        Linear(32, 64, 192, 768),
        Linear(32, 64, 768, 192),
        Linear(32, 197, 192, 192),
        Norm("layer", 32, 192, 64),
    ],
    "depthwise": [
        Conv(64, 3, 32, 32),
        Conv(64, 32, 32, 32, groups=32),
        Conv(64, 64, 64, 32, stride=2, groups=64),
        Conv(64, 128, 128, 16, groups=128),
        Conv(64, 256, 256, 8, groups=256),
        Conv(64, 512, 512, 4, groups=512),
        Conv(64, 32, 64, 32, kernel=1),
        Conv(64, 64, 128, 16, kernel=1),
        Conv(64, 128, 128, 16, kernel=1),
        Conv(64, 256, 256, 8, kernel=1),
        Conv(64, 512, 512, 4, kernel=1),
    ],
    "MLP": [Linear(256, 1, 784, 512), Linear(256, 1, 512, 10)],
    "ResNet-50": [
        Conv(2, 3, 64, 224, kernel=7, stride=2),
        Conv(2, 64, 64, 56),
        Conv(2, 256, 64, 56, kernel=1),
        Conv(2, 1024, 256, 14, kernel=1),
        Conv(2, 512, 512, 7),
    ],
}
Calls = dict[str, Callable[[], object]]


def conv_calls(case: Conv, dtype: torch.dtype, last: bool) -> tuple[Calls, float]:
    pad = case.kernel // 2 if case.kernel != case.stride else 0
    size = (case.size + 2 * pad - case.kernel) // case.stride + 1
    x = torch.randn(case.samples, case.inputs, case.size, case.size, dtype=dtype)
    d = torch.randn(case.samples, case.outputs, size, size, dtype=dtype)
    if last:
        x, d = (t.to(memory_format=torch.channels_last) for t in (x, d))
    square = [(v, v) for v in (case.kernel, case.stride, pad, 1)]
    calls: Calls = {
        name: lambda b=backend: b.conv_sqnorm(x, d, *square, case.groups, False)  # type: ignore[misc]
        for name, backend in (("cpp", cpp_backend), ("torch", torch_backend))
    }
    if prototype := sys.modules.get("r1kern"):
        calls["prototype"] = lambda: prototype_conv(prototype, case, x, d, pad)
    work = case.samples * case.outputs * case.inputs // case.groups * case.kernel**2 * size**2
    return calls, 2.0 * work


def prototype_conv(module, case: Conv, x: torch.Tensor, d: torch.Tensor, pad: int) -> torch.Tensor:
    geometry = [v for v in (case.kernel, case.stride, pad, 1) for _ in range(2)]
    if case.groups > 1:
        return module.dwconv(x, d, *geometry)
    if case.kernel == 1 and case.stride > 1:
        x = x[:, :, :: case.stride, :: case.stride].contiguous()
        geometry = [1, 1, 1, 1, 0, 0, 1, 1]
    pixels, outputs = prod(x.shape[2:]), prod(d.shape[2:])
    taps = case.kernel**2
    gram = (pixels**2 * case.inputs + outputs**2 * case.outputs) / 2 + 8 * outputs**2 * taps
    if gram < case.outputs * case.inputs * taps * outputs:
        return module.conv_gram(x, d, *geometry)
    return module.conv_direct(x, d, *geometry)


def linear_calls(case: Linear, dtype: torch.dtype, last: bool) -> tuple[Calls, float]:
    x = torch.randn(case.samples, case.tokens, case.inputs, dtype=dtype)
    d = torch.randn(case.samples, case.tokens, case.outputs, dtype=dtype)
    calls: Calls = {
        name: lambda b=backend: b.linear_sqnorm(x, d, False)  # type: ignore[misc]
        for name, backend in (("cpp", cpp_backend), ("torch", torch_backend))
    }
    if (prototype := sys.modules.get("r1kern")) and case.tokens > 1:
        gram = case.tokens * (case.inputs + case.outputs) / 2 < case.inputs * case.outputs
        kernel = prototype.lin_gram if gram else prototype.lin_direct
        calls["prototype"] = lambda: kernel(x, d)
    return calls, 2.0 * prod(case)


def norm_calls(case: Norm, dtype: torch.dtype, last: bool) -> tuple[Calls, float]:
    shape = (case.samples, case.channels, case.positions)
    x, d = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    prototype = sys.modules.get("r1kern")
    if case.kind == "layer":
        x, d = (t.transpose(1, 2).contiguous() for t in (x, d))
        calls: Calls = {
            name: lambda b=backend: b.layer_norm_sqnorm(x, d, 1e-5, False)  # type: ignore[misc]
            for name, backend in (("cpp", cpp_backend), ("torch", torch_backend))
        }
        if prototype:
            calls["prototype"] = lambda: prototype.ln(x, d, 1e-5)
        return calls, 6.0 * prod(shape)
    mean, variance = torch.randn(case.channels), torch.rand(case.channels) + 0.5
    calls = {
        name: lambda b=backend: b.batch_norm_sqnorm(x, d, mean, variance, 1e-5)  # type: ignore[misc]
        for name, backend in (("cpp", cpp_backend), ("torch", torch_backend))
    }
    if prototype:
        calls["prototype"] = lambda: prototype.bn(x, d, mean, variance.rsqrt())
    return calls, 4.0 * prod(shape)


def milliseconds(calls: Calls, rounds: int) -> dict[str, float]:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append((clock() - start) * 1e3)
    return {name: min(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--only", default="")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--prototype")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    isa = cpp_backend.use_instruction_set(options.isa)
    if options.prototype:
        sys.path.insert(0, options.prototype)
        __import__("r1kern")
    print(f"{isa}, {options.threads} thread(s), {options.dtype}, torch {torch.__version__}")
    makers = {Conv: conv_calls, Linear: linear_calls, Norm: norm_calls}
    totals: dict[str, float] = {}
    for model, cases in CASES.items():
        for case in cases:
            label = f"{type(case).__name__}{tuple(case)}"
            if options.only not in model + label:
                continue
            dtype = getattr(torch, options.dtype)
            calls, flops = makers[type(case)](case, dtype, options.channels_last)  # type: ignore[operator]
            if dtype != torch.float32:
                calls.pop("prototype", None)
            times = milliseconds(calls, options.rounds)
            columns = [f"{name} {ms:8.3f}" for name, ms in times.items()]
            for name, ms in times.items():
                totals[name] = totals.get(name, 0) + ms
            speed = flops / times["cpp"] / 1e6
            print(f"{model:10} {label:36} {'  '.join(columns)}  {speed:7.1f} GFLOP/s", flush=True)
    print("sum", {name: round(ms, 2) for name, ms in totals.items()})


if __name__ == "__main__":
    main()
