"""Which backend serves a call, and what is said about it."""

import importlib
import logging

import pytest
import torch

from gradood import ops
from gradood.errors import BackendError
from gradood.ops import cpp_backend

dispatch = importlib.import_module("gradood.ops.dispatch")  # a function has the same name


@pytest.fixture(autouse=True)
def fresh_caches():
    dispatch.load.cache_clear()
    dispatch._candidates.cache_clear()
    dispatch._log_once.cache_clear()
    yield
    dispatch.load.cache_clear()
    dispatch._candidates.cache_clear()


def served_by(d):
    with ops.tracing() as served:
        ops.bias_sqnorm(d)
    (call,) = served
    return call.backend


def test_cpp_is_the_default_on_the_cpu(monkeypatch):
    monkeypatch.delenv("GRADOOD_BACKEND", raising=False)
    assert cpp_backend.unavailable() is None
    assert served_by(torch.randn(2, 3, 4)) == "cpp"


@pytest.mark.parametrize("name", ["cpp", "torch"])
def test_environment_forces_a_backend(monkeypatch, name):
    monkeypatch.setenv("GRADOOD_BACKEND", name)
    assert served_by(torch.randn(2, 3, 4)) == name


def test_unknown_backend_is_an_error_that_names_the_known_ones(monkeypatch):
    monkeypatch.setenv("GRADOOD_BACKEND", "fortran")
    with pytest.raises(BackendError, match="fortran.*cpp.*torch"):
        ops.bias_sqnorm(torch.randn(2, 3, 4))


def test_rejected_call_goes_to_the_next_backend_and_is_logged_once(monkeypatch, caplog):
    monkeypatch.setenv("GRADOOD_BACKEND", "cpp")
    d = torch.randn(2, 3, 4, dtype=torch.float64)
    with caplog.at_level(logging.INFO, "gradood"):
        assert served_by(d) == "torch"
        assert served_by(d) == "torch"
    said = [r.message for r in caplog.records if "cannot serve bias_sqnorm" in r.message]
    assert len(said) == 1 and "float64" in said[0]
    torch.testing.assert_close(ops.bias_sqnorm(d), d.sum(2).square().sum(1))


def test_missing_extension_degrades_with_its_reason(monkeypatch, caplog, tmp_path):
    monkeypatch.delenv("GRADOOD_BACKEND", raising=False)
    (tmp_path / "_cpu_missing.txt").write_text("the C++ kernels were not built: no compiler\n")
    (tmp_path / "ops").mkdir()
    monkeypatch.setattr(cpp_backend, "_kernels", None)
    monkeypatch.setattr(cpp_backend, "__file__", str(tmp_path / "ops" / "cpp_backend.py"))
    assert cpp_backend.unavailable() == "the C++ kernels were not built: no compiler"
    with caplog.at_level(logging.INFO, "gradood"):
        assert served_by(torch.randn(2, 3, 4)) == "torch"
    assert any("no compiler" in r.message for r in caplog.records)


def test_explanation_names_the_algorithm():
    x, d = torch.randn(2, 64, 8, 8), torch.randn(2, 64, 8, 8)
    with ops.tracing() as served:
        ops.conv_sqnorm(x, d, [3, 3], [1, 1], [1, 1], [1, 1], 1, False)
        ops.linear_sqnorm(torch.randn(2, 1, 3), torch.randn(2, 1, 4), True)
    assert [call.operator for call in served] == ["conv_sqnorm", "linear_sqnorm"]
    assert served[1].algorithm == "outer"


def test_backends_say_which_operators_they_have():
    """Each a function of that name; PyTorch has all of them, whatever the others lack."""
    backends = {name: dispatch.load(name)[0] for name in ("cpp", "triton", "torch")}
    for backend in filter(None, backends.values()):
        assert all(callable(getattr(backend, op)) for op in backend.OPERATORS)
        assert set(getattr(backend, "TAKES_OVER", ())) <= set(backend.OPERATORS)
        assert set(backend.OPERATORS) <= set(backends["torch"].OPERATORS)
    assert set(ops.__all__) - {"Served", "offers", "tracing"} == set(backends["torch"].OPERATORS)


def test_an_operator_that_the_first_backend_lacks_is_served_by_the_next(monkeypatch):
    monkeypatch.setattr(cpp_backend, "OPERATORS", ("linear_sqnorm",))
    assert served_by(torch.randn(2, 3, 4)) == "torch"


def test_a_pass_reads_the_environment_once(monkeypatch):
    """And what follows the pass reads it again, also after an error in it."""
    pytest.importorskip("gradood._cpu", reason="needs a second backend for the CPU")
    x, d = torch.randn(2, 1, 3), torch.randn(2, 1, 4)

    def backend():
        with ops.tracing() as served:
            ops.linear_sqnorm(x, d, True)
        return served[0].backend

    monkeypatch.setenv("GRADOOD_BACKEND", "torch")
    with pytest.raises(KeyError), dispatch.settled():
        monkeypatch.delenv("GRADOOD_BACKEND")
        assert backend() == "torch"
        raise KeyError
    monkeypatch.setenv("GRADOOD_BACKEND", "nothing")
    with pytest.raises(BackendError):
        backend()
