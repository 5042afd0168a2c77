"""Bytes of tensors of any dtype, strides and size, and what hashes them."""

import pytest
import torch
from torch import nn

import gradood
from gradood.attacks import attack_score
from gradood.detectors import Energy
from gradood.raw_bytes import raw_bytes
from gradood.smoothing.fingerprint import fingerprint

DTYPES = (torch.bool, torch.uint8, torch.int64, torch.float64, torch.bfloat16, torch.complex64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (1, 1), (2, 3)])
def test_bytes_are_those_of_the_elements_in_their_order(dtype, shape):
    torch.manual_seed(0)
    tensor = (torch.randn(shape) * 3).to(dtype)
    wanted = tensor.contiguous().clone().flatten().tolist()
    assert raw_bytes(tensor).view(dtype).tolist() == wanted
    for other in (
        tensor.clone().expand(shape),
        tensor.t().contiguous().t() if shape[1:] else tensor,
    ):
        assert torch.equal(raw_bytes(other), raw_bytes(tensor))


def test_one_element_of_any_stride_is_like_any_other():
    x = torch.tensor([0.3]).expand(1).as_strided((1, 1), (0, 0))
    assert torch.equal(raw_bytes(x), raw_bytes(torch.tensor([[0.3]])))
    model = nn.Linear(1, 3).eval()
    found = attack_score(Energy(model), x, epsilon=torch.tensor(0.1), steps=1, restarts=1)
    assert found.images.shape == (1, 1)
    model.scale = x
    assert fingerprint(model) is not None
    assert gradood.gradient_norms(model, {"input": x}).values.shape == (1, 2)


def test_a_conjugate_view_counts_as_what_it_shows():
    tensor = torch.tensor([1 + 2j, 3 - 1j])
    assert torch.equal(raw_bytes(tensor.conj()), raw_bytes(torch.tensor([1 - 2j, 3 + 1j])))
