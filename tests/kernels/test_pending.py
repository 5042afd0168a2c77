"""Partial sums are left to the end of a pass, where one launch adds up those of all layers."""

from collections import Counter

import pytest
import torch

import gradood
from benchmarks.kernel_calls import CALLS, DEVICE
from gradood import pending
from gradood.kernels import reduction
from gradood.kernels.launch import INTERPRETING
from gradood.ops import triton_backend
from tests.kernels.test_backend import Mixed

NAMES = ["outer", "conv", "depthwise", "shift-gram", "layer norm", "batch norm (2, 41, 17)"]


def run(name):
    call = CALLS[name]
    moved = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in call.arguments]
    found = getattr(triton_backend, call.op)(*moved)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("results", [reduction.RESULTS, 4])
def test_results_that_waited_are_the_same_bits(results, monkeypatch):
    """Also where they take several launches, and for several numbers of samples."""
    monkeypatch.setattr(reduction, "RESULTS", results)
    wanted = {name: run(name) for name in NAMES}
    sums = {}
    with pending.held(sums):
        got = {name: run(name) for name in NAMES}
    assert all(t.isnan().all() for name in NAMES for t in got[name])  # nothing was added up yet
    pending.finish(sums)
    assert not sums
    for name in NAMES:
        assert len(got[name]) == len(wanted[name])
        assert all(torch.equal(a, b) for a, b in zip(got[name], wanted[name], strict=True)), name


@pytest.mark.parametrize("squared", [False, True])
def test_segments_of_any_length(squared):
    partial = torch.randn(3, 2 + 7 * 1300, device=DEVICE)
    segments = (reduction.Segment(2, 1300, 7, squared),)

    def store(x, d, room):
        room[: x.numel()].copy_(x.flatten())

    (got,) = reduction.Summed(store, partial.shape[1], segments)(partial, partial)
    by_column = partial[:, 2:].double().view(3, 7, 1300).sum(1)
    wanted = (by_column.square() if squared else by_column).sum(1)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture
def launched(monkeypatch):
    """How often each kernel was launched."""
    from triton.runtime.interpreter import GridExecutor

    counts, run = Counter(), GridExecutor.__call__

    def counted(self, *args, **options):
        counts[self.fn.__name__] += 1
        return run(self, *args, **options)

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    return counts


@pytest.mark.skipif(not INTERPRETING, reason="launches are counted in the interpreter")
def test_a_pass_adds_up_once(monkeypatch, launched):
    monkeypatch.setenv("GRADOOD_BACKEND", "triton")
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.rand(2, 3, 12, 12)
    gradood.gradient_norms(model, x)
    launched.clear()
    gradood.gradient_norms(model, x)
    assert launched["_sum_kernel"] == 1
    assert sum(launched.values()) > 10
    launched.clear()
    gradood.gradient_norms(model, x, label=["all_hot", "predicted"])
    assert launched["_sum_kernel"] == 2
