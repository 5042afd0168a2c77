"""Who gets the Triton backend, what the others are told, and that whole models agree with C++."""

import os

import pytest
import torch
from torch import nn

import gradood
from benchmarks.kernel_calls import DEVICE
from gradood import ops
from gradood.kernels.launch import INTERPRETING
from gradood.ops import cpp_backend, triton_backend
from tests.processes import python


class Mixed(nn.Module):
    """Every family of kernels in one small network."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(True))
        self.body = nn.Sequential(
            nn.Conv2d(16, 32, 3, 2, 1, bias=False),
            nn.GroupNorm(4, 32),
            nn.Conv2d(32, 32, 3, padding=1, groups=32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 1),
            nn.Conv2d(64, 64, 3, padding=1, groups=2),
        )
        self.place = nn.Parameter(torch.randn(1, 36, 64))
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        tokens = self.body(self.stem(x)).flatten(2).transpose(1, 2) + self.place
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.norm(tokens).mean(1))


class Words(nn.Module):
    """Token indices in, looked up twice in the sentence."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 24, padding_idx=0)
        self.norm = nn.RMSNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.norm(self.table(x)).mean(1))


MODELS = {
    "mixed": (Mixed, lambda: torch.rand(2, 3, 12, 12)),
    "words": (Words, lambda: torch.randint(0, 20, (3, 9))),
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(33, 41), nn.ReLU(), nn.Linear(41, 7)),
        lambda: torch.rand(5, 33),
    ),
}


TWO = ["all_hot", "predicted"]


@pytest.mark.parametrize(
    ("name", "label"),
    [("mixed", "all_hot"), ("words", TWO), ("perceptron", "all_hot"), ("perceptron", TWO)]
    + [pytest.param("mixed", TWO, marks=pytest.mark.slow)],
)
def test_gradient_norms_equal_those_of_cpp(name, label, monkeypatch):
    torch.manual_seed(0)
    build, batch = MODELS[name]
    model, x = build().eval(), batch()
    monkeypatch.setenv("GRADOOD_BACKEND", "cpp")
    wanted = gradood.gradient_norms(model, x, label=label)
    monkeypatch.setenv("GRADOOD_BACKEND", "triton")
    model, x = model.to(DEVICE), x.to(DEVICE)
    with torch.no_grad():
        got = gradood.gradient_norms(model, x, label=label)
    torch.testing.assert_close(got.values.cpu(), wanted.values, rtol=1e-5, atol=1e-12)
    rows = gradood.explain(model, x)
    assert {row.backend for row in rows} <= {"triton", "torch"}
    assert sum(row.backend == "triton" for row in rows) >= len(rows) - 1


def test_forced_backend_serves_every_operator(monkeypatch):
    monkeypatch.setenv("GRADOOD_BACKEND", "triton")
    d = torch.randn(2, 3, 4, device=DEVICE)
    with ops.tracing() as served:
        ops.bias_sqnorm(d)
        ops.bias_sqnorm(d.double())
    assert [call.backend for call in served] == ["triton", "torch"]


@pytest.mark.skipif(not INTERPRETING, reason="a GPU is there")
def test_the_interpreter_is_never_the_default(monkeypatch):
    monkeypatch.delenv("GRADOOD_BACKEND", raising=False)
    with ops.tracing() as served:
        ops.bias_sqnorm(torch.randn(2, 3, 4))
    assert served[0].backend != "triton"
    assert triton_backend.unavailable() is None and cpp_backend.unavailable() is None


def sentence(code, **environment):
    """What a fresh process says about the backend."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "GRADOOD_BACKEND")}
    code += "\nfrom gradood.ops.dispatch import load\nprint(load('triton')[1])"
    done = python("-c", code, environment=kept | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_machine_without_triton_is_told_so():
    said = sentence("import sys; sys.modules['triton'] = None")
    assert said.startswith("not installed") and "triton" in said and "\n" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_machine_without_a_gpu_is_told_so():
    said = sentence("")
    assert "no GPU that Triton supports" in said and "\n" not in said


def test_an_unsupported_gpu_is_told_so():
    """The dry driver stands for the GPU."""
    said = sentence(
        "from triton.backends.compiler import GPUTarget\n"
        "from triton.runtime import driver\n"
        "from benchmarks.gpu.dry_driver import _Driver\n"
        "from gradood.ops.triton_backend import unavailable\n"
        "driver.set_active(there := _Driver('sm_90'))\n"
        "for gpu in (('cuda', 75), ('hip', 'gfx1100'), ('cuda', 90), ('hip', 'gfx950')):\n"
        "    there._target = GPUTarget(*gpu, 32)\n"
        "    print(unavailable())"
    ).splitlines()
    assert len(said) == 5  # the last is what a fresh process would do anyway
    assert "compute capability 7.5" in said[0] and "8.0" in said[0]
    assert "gfx1100" in said[1] and "gfx942" in said[1]
    assert said[2:4] == ["None", "None"]


def test_next_backend_serves_and_the_reason_is_logged(tmp_path):
    code = (
        "import logging, torch\n"
        "logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "from gradood import ops\n"
        "for _ in range(2):\n"
        "    with ops.tracing() as served: ops.bias_sqnorm(torch.ones(1, 2, 3))\n"
        "    assert served[0].backend == 'torch', served\n"
    )
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    kept["GRADOOD_BACKEND"] = "triton"
    done = python("-c", code, environment=kept)
    assert done.returncode == 0, done.stderr
    if not torch.cuda.is_available():
        assert done.stderr.count("backend triton is not used: no GPU") == 1


def test_every_operator_of_the_reference_is_served():
    from gradood.ops import reference

    everything = (n for n in dir(reference) if n.endswith(("_sqnorm", "_batch", "_count")))
    names = [n for n in everything if n[0] != "_"]
    assert len(names) >= 11 and all(callable(getattr(triton_backend, name)) for name in names)


def test_a_certificate_equals_that_of_cpp(monkeypatch):
    """Noise, votes and bounds: the same counts from either backend."""
    model, x = gradood.data.embedded_classifier(), gradood.data.embedded_images("fashion-mnist")[:2]
    settings = gradood.Smoothing(sigma=0.05, n=32, n0=8, alpha=0.01, seed=3)
    if not INTERPRETING:
        model, x = model.to(DEVICE), x.to(DEVICE)
    monkeypatch.setenv("GRADOOD_BACKEND", "triton")
    with ops.tracing() as served:
        triton = gradood.certify_class(model, x, settings=settings)
    assert {s.backend for s in served if s.operator in ("noisy_batch", "vote_count")} == {"triton"}
    monkeypatch.setenv("GRADOOD_BACKEND", "cpp")
    cpp = gradood.certify_class(model.cpu(), x.cpu(), settings=settings)
    assert torch.equal(triton.label.cpu(), cpp.label)
    torch.testing.assert_close(triton.radius.cpu(), cpp.radius, rtol=0, atol=0)
