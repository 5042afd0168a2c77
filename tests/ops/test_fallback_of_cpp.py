"""A C++ kernel that fails is left for its operator: PyTorch does the rest of the pass."""

import logging
import sys

import pytest
import torch
from torch import nn

from gradood import ops
from gradood.errors import BackendError
from gradood.gradients import forward_norms, gradient_norms
from gradood.ops import cpp_backend

dispatch = sys.modules["gradood.ops.dispatch"]
pytestmark = pytest.mark.skipif(
    cpp_backend.unavailable() is not None, reason="the C++ kernels were not built"
)


@pytest.fixture(autouse=True)
def cpp_first(monkeypatch):
    """What was left is forgotten afterwards."""
    monkeypatch.setenv("GRADOOD_BACKEND", "cpp")
    monkeypatch.setattr(dispatch, "_LEFT", {})


class Broken:
    """The kernels, of which one fails."""

    def __init__(self, kernels, name, error):
        self._kernels, self._name, self._error = kernels, name, error

    def __getattr__(self, name):
        if name != self._name:
            return getattr(self._kernels, name)
        raise self._error


def network():
    torch.manual_seed(0)
    blocks = [(nn.Conv2d(c, 6, 3), nn.BatchNorm2d(6), nn.ReLU()) for c in (3, 6, 6)]
    return nn.Sequential(*(m for block in blocks for m in block), nn.Flatten(), nn.Linear(54, 3))


FAILURES = {
    "batch_norm_sums": AttributeError("an older build"),
    "batch_norm": RuntimeError("an illegal instruction"),
    "outer": ValueError("such a layout is not written"),
}


@pytest.mark.parametrize("kernel", FAILURES)
def test_a_pass_goes_on_without_a_kernel(kernel, monkeypatch, caplog):
    model, x = network().eval(), torch.rand(2, 3, 9, 9)
    wanted = gradient_norms(model, x).values, forward_norms(model, x).activations
    broken = Broken(cpp_backend._kernels, kernel, FAILURES[kernel])
    monkeypatch.setattr(cpp_backend, "_kernels", broken)
    with caplog.at_level(logging.WARNING, "gradood"):
        found = gradient_norms(model, x).values, forward_norms(model, x).activations
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    (left,) = dispatch.left()
    assert left.startswith("cpp, ") and kernel in left.replace("linear", "outer")
    assert [m for m in caplog.messages if "cpp fails" in m] == caplog.messages
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("error", [BackendError("no meaning"), MemoryError()])
def test_what_pytorch_cannot_mend_is_raised(error, monkeypatch):
    monkeypatch.setattr(cpp_backend, "_kernels", Broken(cpp_backend._kernels, "bias", error))
    with pytest.raises(type(error)):
        ops.bias_sqnorm(torch.randn(2, 3, 4))
    assert not dispatch.left()
