"""Sums as tensor cores round them: no two of their generations add as IEEE 754 does.

Fasi et al., "Numerical behavior of NVIDIA tensor cores" (2021), and measurements of its successors:
products are exact; those of an instruction and the sum so far are aligned to the largest exponent,
cut off some bits below it, added, and cut to float32. Bits and products an instruction by GPU.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks.kernel_calls import CALLS, Call, relative_error
from gradood.kernels import interpreter, launch, outer, prepared
from gradood.kernels.launch import INTERPRETING
from gradood.ops import triton_backend

pytestmark = pytest.mark.skipif(not INTERPRETING, reason="the GPU's own arithmetic is tested here")
#: Products that are added at once, and bits kept below the leading one of the largest.
GPUS = {"A100": (8, 24), "H100": (16, 25)}
NAMES = ["outer, several tiles", "gram, several tiles", "conv, several tiles", "shift-gram"]


def cut(x):
    """Float64 to float32, towards zero."""
    near = x.astype(np.float32)
    return np.where(np.abs(near) > np.abs(x), np.nextafter(near, np.float32(0)), near)


def product(block, bits):
    def add(x, y, total):
        sums = np.asarray(total, np.float64)
        for k in range(0, x.shape[1], block):
            terms = x[:, None, k : k + block].astype(np.float64) * y.T[None, :, k : k + block]
            terms = np.concatenate([terms, sums[:, :, None]], 2)
            _, exponent = np.frexp(np.abs(terms).max(2))
            quantum = np.ldexp(1.0, exponent - 1 - bits)[:, :, None]
            sums = cut((np.trunc(terms / quantum) * quantum).sum(2)).astype(np.float64)
        return sums.astype(np.float32)

    return add


def run(call):
    return getattr(triton_backend, call.op)(*call.arguments)


@pytest.fixture(params=GPUS)
def gpu(request, monkeypatch):
    monkeypatch.setattr(interpreter, "_product", product(*GPUS[request.param]))
    return request.param


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_far_within_what_is_promised(name, gpu):
    """1e-2, or rather the rounding of the inputs; sums lose some of the last bits of float32."""
    assert relative_error(CALLS[name].map(lambda t: t.bfloat16()), run) < 1e-4


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, "tf32x3" if "gram" in name else "bf16x3") for name in NAMES],
)
def test_split_float32_stays_within_what_is_promised(name, precision, gpu):
    """1e-5, by the precision that ``product_precision`` chooses for each kernel."""
    with triton_backend.precision(precision):
        assert relative_error(CALLS[name], run) < 1e-5


@pytest.mark.parametrize("pixels", [3136, 12544])
def test_long_sums_stay_within_what_is_promised(pixels, gpu, monkeypatch, request):
    """Cut sums drift; the tile that tensor cores add up before float32 takes over is short."""
    torch.manual_seed(0)
    x, d = torch.randn(1, pixels, 16) + 0.5, torch.randn(1, pixels, 16) + 0.5
    settings = launch.settings

    def as_compiled(family, dtype, *size):
        return settings(family, dtype, *size)._replace(tokens=32)

    monkeypatch.setattr(outer, "settings", as_compiled)
    prepared.forget()
    request.addfinalizer(prepared.forget)
    call = Call("linear_sqnorm", (x, d, False))

    def run_outer(call):
        return outer.prepare(*call.arguments).both(*call.arguments[:2])

    with triton_backend.precision("bf16x3"):
        assert relative_error(call, run_outer) < 1e-5
    call = call.map(lambda t: t.bfloat16())
    assert relative_error(call, run_outer) < 1e-3


def test_the_compiler_adds_tiles_of_split_float32_outside_the_tensor_cores():
    code = (
        "from benchmarks.gpu.dry_driver import dry\n"
        "from gradood.benchmarking.gpu.launch_cases import launch_cases\n"
        "from gradood.ops import triton_backend\n"
        "case = launch_cases()['outer, large, float32']\n"
        "for target in ('sm_80', 'sm_90'):\n"
        "    with dry(target) as launches: triton_backend.linear_sqnorm(*case.make())\n"
        "    print(launches[0].compiled.asm['ttgir'])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"%gradient\S* = arith\.addf", done.stdout)) == 2


def test_sums_are_cut_and_aligned():
    """Ones below the last bit kept beside a large term are lost, unless they meet first."""
    x, y = np.full((1, 16), 1, np.float32), np.full((16, 1), 2.0**-26, np.float32)
    one = np.ones((1, 1), np.float32)
    assert product(16, 25)(x, y, one)[0, 0] == 1  # where exact sums would give 1 + 2⁻²²
    assert product(16, 25)(x, y, 0 * one)[0, 0] == 2.0**-22
    assert product(16, 25)(x, -y, one)[0, 0] == 1
    assert cut(np.array([1 + 2.0**-23 * 0.9, -1 - 2.0**-23 * 0.9])).tolist() == [1, -1]


def test_the_emulation_is_at_work(gpu):
    call = CALLS["outer, several tiles"].map(lambda t: t.bfloat16())
    truncated = run(call)[0]
    interpreter._product = lambda x, y, total: np.matmul(x, y) + total  # put back by the fixture
    assert not torch.equal(truncated, run(call)[0])
