"""Programs of a launch run at once: no two may write one place, and none read what another writes.

The interpreter tells which addresses each program loads and stores.
"""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from benchmarks.kernel_calls import CALLS
from gradood import pending
from gradood.kernels import conv3x3
from gradood.kernels.launch import INTERPRETING
from gradood.kernels.layout import Geometry
from gradood.ops import triton_backend

pytestmark = pytest.mark.skipif(not INTERPRETING, reason="addresses are seen in the interpreter")
QUICK = {"outer, several tiles", "gram, several tiles", "conv", "shift-gram", "depthwise",
         "layer norm, several programs", "batch norm backward (1, 33, 2101)",
         "layer norm backward (3, 17, 41)"}  # fmt: skip


class Log:
    """Addresses by program, a launch at a time, and what is wrong with them."""

    def __init__(self):
        self.program, self.launches, self.faults = None, 0, []
        self.stored, self.loaded = [], []

    def begin(self):
        self.stored, self.loaded = [], []

    def end(self, kernel):
        self.launches += 1
        owners = {}
        for program, addresses in self.stored:
            if len(np.unique(addresses)) != len(addresses):
                self.faults.append(f"{kernel}: lanes of one store collide")
            for address in addresses.tolist():
                if owners.setdefault(address, program) != program:
                    self.faults.append(f"{kernel}: {program} and {owners[address]} store")
        everywhere = np.fromiter(owners, np.uint64, len(owners))
        for program, addresses in self.loaded:
            for address in np.intersect1d(addresses, everywhere).tolist():
                if owners[address] != program:
                    self.faults.append(f"{kernel}: {program} loads what {owners[address]} stores")


@pytest.fixture
def log(monkeypatch):
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    found, builder = Log(), InterpreterBuilder
    grid, store, load = (
        builder.set_grid_idx, builder.create_masked_store, builder.create_masked_load
    )  # fmt: skip
    launch = GridExecutor.__call__

    def active(pointers, mask):
        chosen = pointers.data[mask.data.astype(bool)] if mask.data.shape else pointers.data
        return np.atleast_1d(chosen).ravel().astype(np.uint64)

    def set_grid_idx(self, *place):
        found.program = place
        grid(self, *place)

    def create_masked_store(self, pointers, value, mask, *rest):
        found.stored.append((found.program, active(pointers, mask)))
        return store(self, pointers, value, mask, *rest)

    def create_masked_load(self, pointers, mask, *rest):
        found.loaded.append((found.program, active(pointers, mask)))
        return load(self, pointers, mask, *rest)

    def call(self, *arguments, **options):
        found.begin()
        result = launch(self, *arguments, **options)
        found.end(self.fn.__name__)
        return result

    monkeypatch.setattr(builder, "set_grid_idx", set_grid_idx)
    monkeypatch.setattr(builder, "create_masked_store", create_masked_store)
    monkeypatch.setattr(builder, "create_masked_load", create_masked_load)
    monkeypatch.setattr(GridExecutor, "__call__", call)
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in CALLS]
)
def test_programs_keep_apart(name, log):
    call = CALLS[name]
    getattr(triton_backend, call.op)(*call.arguments)
    assert log.launches > 0 and not log.faults, log.faults[:5]


def test_nine_taps_keep_apart(log):
    x, d, *geometry, groups, bias = CALLS["conv, three by three groups"].arguments
    conv3x3.prepare(x, d, Geometry.of(*geometry, groups), bias).both(x, d)
    assert log.launches == 2 and not log.faults, log.faults[:5]


def test_layers_that_wait_keep_apart(log):
    """Also between launches: what one layer left behind is nobody else's."""
    sums, stored = {}, defaultdict(set)
    with pending.held(sums):
        for name in ("outer", "conv", "batch norm backward (1, 33, 2101)"):
            call = CALLS[name]
            getattr(triton_backend, call.op)(*call.arguments)
            stored[name] = {a for _, addresses in log.stored for a in addresses.tolist()}
    pending.finish(sums)
    assert not log.faults, log.faults[:5]
    assert sum(map(len, stored.values())) == len(set.union(*stored.values()))


def test_a_race_would_be_seen(log):
    """Two programs that store one number, and one that loads what another stores."""
    import triton
    import triton.language as tl

    @triton.jit
    def _racing_kernel(out, APART: tl.constexpr):
        program = tl.program_id(0)
        value = tl.load(out + (program + 1) % 2)
        tl.store(out + program * APART, value)

    out = torch.zeros(2)
    _racing_kernel[(2,)](out, APART=0)
    assert any("and" in fault for fault in log.faults)
    log.faults.clear()
    _racing_kernel[(2,)](out, APART=1)
    assert any("loads what" in fault for fault in log.faults)
    assert math.isfinite(out.sum())
