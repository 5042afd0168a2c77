"""Every operator × backend × dtype at three sizes, under pytest-benchmark.

    pytest benchmarks --benchmark-only [--quick] [--benchmark-autosave] [--benchmark-compare]
    pytest benchmarks --benchmark-only -k "linear and cpp" --benchmark-group-by=param:size

``extra_info`` has the bytes that a call must read and write and the operations of the direct
formula, in millions, and of the best round GB/s, GFLOP/s and the share of the roofline: the least
time that memory and arithmetic allow, at the rates that a copy and a product of matrices reach
here, over the time taken. It exceeds one where numbers lie in a cache, or an algorithm needs fewer
operations. On a CUDA device (``-k triton``) events of the device are the clock.
"""

import time
from functools import cache, partial

import pytest
import torch

from gradood.ops.dispatch import load

#: Samples, tokens or pixels a side, and channels.
SIZES = {"small": (4, 8, 32), "medium": (16, 16, 64), "large": (32, 32, 128)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SQUARE = ((3, 3), (1, 1), (1, 1), (1, 1))


def linear(n, side, c):
    return (torch.randn(n, 8 * side, c), torch.randn(n, 8 * side, 2 * c), True), 16 * side * c * c


def convolution(n, side, c):
    x, d = torch.randn(n, c, side, side), torch.randn(n, c, side, side)
    return (x, d, *SQUARE, 1, True), 9 * c * c * side * side


def pointwise(n, side, c):
    x, d = torch.randn(n, c, side, side), torch.randn(n, 2 * c, side, side)
    return (x, d, (1, 1), (1, 1), (0, 0), (1, 1), 1, True), 2 * c * c * side * side


def depthwise(n, side, c):
    x, d = torch.randn(n, c, side, side), torch.randn(n, c, side, side)
    return (x, d, *SQUARE, c, True), 9 * c * side * side


def outer(n, side, c):
    return (torch.randn(n, 1, 8 * c), torch.randn(n, 1, 8 * c), True), 16 * c


def bias(n, side, c):
    return (torch.randn(n, c, side * side),), c * side * side / 2


def rows(n, side, c):
    return torch.randn(n, c, side * side), torch.randn(n, c, side * side)


def channel_sums(n, side, c):
    return rows(n, side, c)[:1], 2 * c * side * side


def batch_norm(n, side, c):
    return (*rows(n, side, c), torch.randn(c), torch.rand(c), 1e-5), 2 * c * side * side


def batch_norm_backward(n, side, c):
    statistics = torch.randn(c), torch.rand(c), torch.rand(c)
    return (*rows(n, side, c), *statistics, 1e-5), 3 * c * side * side


def layer_norm(n, side, c):
    x, d = (t.transpose(1, 2).contiguous() for t in rows(n, side, c))
    return (x, d, 1e-5, False), 4 * c * side * side


def layer_norm_backward(n, side, c):
    x, d = (t.transpose(1, 2).contiguous() for t in rows(n, side, c))
    return (x, d, torch.rand(c), 1e-5, False), 8 * c * side * side


def group_norm(n, side, c):
    return (*rows(n, side, c), 4, 1e-5), 4 * c * side * side


def embedding(n, side, c):
    return (torch.randint(0, 99, (n, 8 * side)), torch.randn(n, 8 * side, c), 0), 4 * side * c


def noise(n, side, c):
    x, key = torch.rand(2, 3, 4 * side, 4 * side), torch.tensor([7, 1])
    copies = torch.arange(4 * n)
    options = (0.25, 0.0, 1.0, None, None, torch.float32, False)
    return (x, copies % 2, copies % 2, copies, key, *options), 4 * 3 * 16 * side * side


def grid(n, side, c):
    (x, rows, inputs, samples, key, *_), products = noise(n, side, c)
    options = (0.25, 255.0, 0.0, 1.0, torch.float32, False)
    return (x, rows, inputs, samples, key, *options), products


def batch_norm_sums(n, side, c):
    x = torch.randn(n, c, side, side)
    return (x, torch.randn(c), torch.rand(c), torch.rand(c), torch.randn(c), 1e-5), (
        4 * c * side * side
    )


def votes(mode):
    def make(n, side, c):
        values = torch.randn((16 * n, 8 * c) if mode == "argmax" else 16 * n)
        thresholds = None if mode == "argmax" else torch.linspace(-2, 2, 8 * c)
        return (values, torch.arange(16 * n) % 3, mode, thresholds, 3), 4 * c

    return make


#: How arguments and multiply-adds a sample are made, and the operator that takes them.
OPERATORS = {
    "linear": (linear, "linear_sqnorm"),
    "convolution": (convolution, "conv_sqnorm"),
    "pointwise": (pointwise, "conv_sqnorm"),
    "depthwise": (depthwise, "conv_sqnorm"),
    "outer": (outer, "linear_sqnorm"),
    "bias": (bias, "bias_sqnorm"),
    "channel_sums": (channel_sums, "channel_sums"),
    "batch_norm": (batch_norm, "batch_norm_sqnorm"),
    "batch_norm_backward": (batch_norm_backward, "batch_norm_backward_sqnorm"),
    "layer_norm": (layer_norm, "layer_norm_sqnorm"),
    "layer_norm_backward": (layer_norm_backward, "layer_norm_backward_sqnorm"),
    "group_norm": (group_norm, "group_norm_sqnorm"),
    "embedding": (embedding, "embedding_sqnorm"),
    "batch_norm_sums": (batch_norm_sums, "batch_norm_sums"),
    "noise": (noise, "noisy_batch"),
    "grid_noise": (grid, "grid_batch"),
    "votes": (votes("argmax"), "vote_count"),
    "votes_above": (votes("above"), "vote_count"),
    "votes_histogram": (votes("histogram"), "vote_count"),
}


def on(device, dtype, arguments):
    """The first two tensors in the dtype, statistics as they are; integers stay integers."""
    moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
    for i, a in enumerate(moved[:2]):
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            moved[i] = a.to(dtype)
    return moved


#: Operators that are asked for in float32 alone.
FLOAT32 = ("noisy_batch", "grid_batch", "vote_count", "batch_norm_sums")


@cache
def first_event():
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def device_seconds():
    """The time by the clock of a CUDA device, when all that was asked of it is done."""
    first, now = first_event(), torch.cuda.Event(enable_timing=True)
    now.record()
    now.synchronize()
    return first.elapsed_time(now) / 1e3


@cache
def rates(device, dtype):
    """Bytes and operations a second: of a copy, and of the product of two matrices."""
    clock = device_seconds if device == "cuda" else time.perf_counter
    source = torch.empty(1 << 26, dtype=torch.uint8, device=device)
    a = torch.randn(1024, 1024, device=device).to(dtype)
    target, product = source.clone(), a @ a
    return (
        2 * source.nbytes / least(clock, partial(target.copy_, source)),
        2 * 1024**3 / least(clock, partial(torch.mm, a, a, out=product)),
    )


def least(clock, call):
    taken = []
    for _ in range(7):
        begin = clock()
        call()
        taken.append(clock() - begin)
    return min(taken)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "backend",
    ["cpp", "torch", pytest.param("triton", marks=pytest.mark.benchmark(timer=device_seconds))],
)
@pytest.mark.parametrize("operator", OPERATORS)
def test_operator(benchmark, operator, backend, dtype, size):
    module, missing = load(backend)
    device = "cuda" if backend == "triton" else "cpu"
    if missing is not None or (device == "cuda" and not torch.cuda.is_available()):
        pytest.skip(f"{backend}: {missing or 'needs a CUDA device'}")
    make, name = OPERATORS[operator]
    if name in FLOAT32 and dtype != "float32":
        pytest.skip("float32 alone")
    arguments, products = make(*SIZES[size])
    arguments = on(device, DTYPES[dtype], arguments)
    reason = module.reject(name, *arguments)
    if reason is not None:
        pytest.skip(reason)
    samples = len(arguments[1]) if name in ("noisy_batch", "grid_batch") else len(arguments[0])
    call = partial(getattr(module, name), *arguments)
    result = call()
    tensors = [t for t in (*arguments, *(result if isinstance(result, tuple) else (result,)))
               if isinstance(t, torch.Tensor)]  # fmt: skip
    moved, operations = sum(t.nbytes for t in tensors), 2 * samples * products
    benchmark.group = f"{operator}, {size}"
    benchmark.extra_info |= {
        "algorithm": module.algorithm(name, *arguments),
        "megabytes": moved / 1e6,
        "million_operations": operations / 1e6,
    }
    benchmark(call)
    if benchmark.stats:
        best, (bandwidth, arithmetic) = benchmark.stats.stats.min, rates(device, DTYPES[dtype])
        benchmark.extra_info |= {
            "GB/s": moved / best / 1e9,
            "GFLOP/s": operations / best / 1e9,
            "share_of_roofline": max(moved / bandwidth, operations / arithmetic) / best,
        }
