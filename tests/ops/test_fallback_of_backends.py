"""A backend that cannot compile, load or launch is left for that operator, and says why once."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import gradood
from gradood import ops
from gradood.errors import BackendError, InputError
from gradood.ops import dispatch as dispatch_function, gpu_state, triton_backend, triton_choice
from tests.processes import python

dispatch = sys.modules["gradood.ops.dispatch"]


@pytest.fixture(autouse=True)
def triton_first(monkeypatch):
    """Triton's kernels in the interpreter; what was left is forgotten afterwards."""
    pytest.importorskip("triton")
    monkeypatch.setenv("GRADOOD_BACKEND", "triton")
    monkeypatch.setattr(dispatch, "_LEFT", {})


FAILURES = {
    "compilation": RuntimeError("PassManager::run failed"),
    "launcher": subprocess.CalledProcessError(1, ["gcc", "main.c"]),
    "kind of tensor": TypeError("'NoneType' object is not callable"),
    "resources": ValueError("out of resource: shared memory"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_the_next_backend_serves_after_any_failure(kind, monkeypatch, caplog):
    calls = []

    def fails(*args):
        calls.append(args)
        raise FAILURES[kind] from AttributeError("the cause\nin two lines")

    monkeypatch.setattr(triton_choice.outer, "prepare", fails)
    monkeypatch.setattr(triton_choice.gram, "prepare", fails)
    x, d = torch.randn(2, 5, 4), torch.randn(2, 5, 3)
    with caplog.at_level(logging.WARNING, "gradood"), ops.tracing() as served:
        for _ in range(3):
            got = ops.linear_sqnorm(x, d, False)[0]
            ops.bias_sqnorm(d)
    wanted = torch.einsum("ntp,ntq->npq", d, x).square().sum((1, 2))
    torch.testing.assert_close(got, wanted)
    assert [s.backend for s in served] == ["torch", "triton"] * 3  # only that operator is left
    assert len(calls) == 1
    (said,) = caplog.messages
    assert "triton fails at linear_sqnorm on cpu" in said and "the cause" in said
    assert "\n" not in said and type(FAILURES[kind]).__name__ in said
    assert list(dispatch.left()) == ["triton, linear_sqnorm, cpu"]


def test_a_whole_model_is_scored_where_a_kernel_does_not_compile(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.rand(2, 3, 8, 8)
    monkeypatch.setenv("GRADOOD_BACKEND", "torch")
    wanted = gradood.gradient_norms(model, x).values
    monkeypatch.setenv("GRADOOD_BACKEND", "triton")

    def fails(*args):
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(triton_choice.conv, "prepare", fails)
    torch.testing.assert_close(gradood.gradient_norms(model, x).values, wanted)


@pytest.mark.parametrize("error", [InputError("no such precision"), torch.OutOfMemoryError("full")])
def test_what_no_backend_can_mend_is_raised(error, monkeypatch):
    def fails(*args):
        raise error

    monkeypatch.setattr(triton_backend.affine, "bias_sqnorm", fails)
    with pytest.raises(type(error)):
        ops.bias_sqnorm(torch.randn(2, 3, 4))
    assert not dispatch.left()


def test_an_operator_that_a_backend_lacks_goes_to_the_next():
    with pytest.raises(BackendError, match="no backend serves an_operator"):
        dispatch_function("an_operator_that_triton_lacks", torch.ones(2))


def test_a_backend_that_does_not_import_is_told(monkeypatch):
    """As Triton 3.2 had no ``knobs``: not only ImportError."""
    monkeypatch.setitem(dispatch._MODULES, "odd", "an.odd.module")

    def fails(name):
        raise AttributeError("module 'triton' has no attribute 'knobs'")

    monkeypatch.setattr(dispatch, "importlib", SimpleNamespace(import_module=fails))
    module, reason = dispatch.load.__wrapped__("odd")
    assert module is None and "does not load" in reason and "knobs" in reason


def state(tmp_path, code, **environment):
    """What a process says of Triton that believes in a GPU and in a driver's library."""
    (tmp_path / "libcuda.so.1").touch()
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "CC")}
    kept |= {"TRITON_LIBCUDA_PATH": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    code = "import torch\ntorch.cuda.is_available = lambda: True\n" + code
    code += "\nfrom gradood.ops import triton_backend\nprint(*triton_backend.problem(), sep='|')"
    done = python("-c", code, environment=kept | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1].split("|")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_no_compiler_is_not_called_no_gpu(tmp_path):
    kind, sentence = state(tmp_path, "", CC="/bin/false")
    assert kind == gpu_state.NO_COMPILER and "/bin/false" in sentence
    kind, sentence = state(tmp_path, "", PATH=str(tmp_path))
    assert kind == gpu_state.NO_COMPILER and "install" in sentence


def test_an_old_triton_is_named(tmp_path):
    kind, sentence = state(tmp_path, "import triton\ntriton.__version__ = '3.1.0'")
    assert kind == gpu_state.VERSION and "3.1.0" in sentence and "upgrade" in sentence


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Found no NVIDIA driver on your system.", gpu_state.NO_DRIVER),
        ("The NVIDIA driver on your system is too old (found version 11040).", gpu_state.NO_DRIVER),
        ("No CUDA GPUs are available", gpu_state.NO_GPU),
    ],
)
def test_no_driver_and_no_gpu_are_told_apart(said, kind, monkeypatch):
    def init():
        raise RuntimeError(said)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    found = gpu_state.without_gpu()
    assert found.kind == kind and said in found.sentence


def test_pytorch_without_cuda_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert gpu_state.without_gpu().kind == gpu_state.NO_BUILD
