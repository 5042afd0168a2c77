"""The plain PyTorch backend equals the executable specification."""

import pytest
import torch

import gradood.ops  # noqa: F401  (registers the operators)
from gradood.ops import torch_backend


def test_equals_the_reference_in_float64(case, assert_close):
    exact = case.map(torch.Tensor.double)
    got = getattr(torch_backend, case.op)(*exact.arguments)
    assert_close(got, case.expected(), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(case, dtype, assert_close):
    half = case.map(lambda t: t.to(dtype))
    got = getattr(torch_backend, case.op)(*half.arguments)
    assert_close(got, half.expected(), 2e-4)


def test_one_sample_a_chunk_changes_nothing(case, monkeypatch, assert_close):
    exact = case.map(torch.Tensor.double)
    monkeypatch.setattr(torch_backend, "CHUNK_BYTES", 1)
    assert_close(getattr(torch_backend, case.op)(*exact.arguments), case.expected(), 1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "bias (2, 41, 17)",
        "channel sums (2, 41, 17)",
        "linear (17, 41, 3)",
        "conv strided",
        "batch_norm (2, 41, 17)",
        "batch_norm backward (2, 41, 17)",
        "layer_norm (2, 41, 17)",
        "layer_norm backward (2, 41, 17)",
        "group_norm 8 groups",
        "embedding (17, 41, 5, 0)",
    ],
)
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_operator_passes_opcheck(cases, name, backend, monkeypatch):
    """Schema, fake implementation and functional behaviour, of each registered operator."""
    monkeypatch.setenv("GRADOOD_BACKEND", backend)
    op, arguments = cases[name]
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        getattr(torch.ops.gradood, op).default, arguments, test_utils=checks, raise_exception=True
    )
