"""The kernels run on PyTorch's own threads, as many as it is told to use."""

import sys

import pytest
import torch

from gradood.ops import cpp_backend
from tests.processes import python

COUNT_THREADS = """
import os, sys, torch
from gradood.ops import cpp_backend
torch.set_num_threads(int(sys.argv[1]))
count = lambda: len(os.listdir("/proc/self/task"))
x = torch.randn(64, 32, 16, 16)
if sys.argv[2] == "torch first":
    torch.nn.functional.relu(torch.randn(1 << 22)).sum()
before = count()
cpp_backend.conv_sqnorm(x, x, [3, 3], [1, 1], [1, 1], [1, 1], 1, False)
after = count()
torch.nn.functional.relu(torch.randn(1 << 22)).sum()
runtimes = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
print(before, after, count(), len(runtimes))
"""


def threads(number, order):
    done = python("-c", COUNT_THREADS, number, order)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads through /proc")
def test_kernels_share_the_pool_of_pytorch():
    before, after, at_end, runtimes = threads(2, "torch first")
    assert before == after == at_end, "a second pool was started"
    assert runtimes == 1


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads through /proc")
def test_pytorch_shares_the_pool_of_the_kernels():
    before, after, at_end, _ = threads(2, "kernels first")
    assert after == before + 1, "the kernels did not run on two threads"
    assert at_end == after, "a second pool was started"


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads through /proc")
def test_one_thread_starts_none():
    before, after, _, _ = threads(1, "kernels first")
    assert before == after


@pytest.mark.parametrize("number", [2, 3])
def test_result_does_not_depend_on_the_number_of_threads(cases, number):
    at_start = torch.get_num_threads()
    try:
        for case in cases.values():
            torch.set_num_threads(1)
            alone = getattr(cpp_backend, case.op)(*case.arguments)
            torch.set_num_threads(number)
            together = getattr(cpp_backend, case.op)(*case.arguments)
            for a, b in zip(alone, together, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)
    finally:
        torch.set_num_threads(at_start)
