"""Tensors that a model makes of its parameters by operators that autograd has trouble with."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradood
from gradood.errors import ModelError
from gradood.gradients.gathered import through_rows
from tests.gradients.oracle import assert_norms, reference_norms

HEAD = torch.linspace(-1, 1, 75, dtype=torch.float64).sin().view(25, 3)


class Made(nn.Module):
    """What ``make`` makes of a parameter, times the batch, is summed up to three logits."""

    def __init__(self, make, weight):
        super().__init__()
        self.make, self.weight = make, nn.Parameter(weight)

    def forward(self, x):
        made = self.make(self.weight).flatten()
        return (x[:, : made.numel()] * made) @ HEAD[: made.numel()]


def eigenvalues(weight):
    """Complex numbers in an odd number of real ones: every other row of a batch lies askew."""
    values, vectors = torch.linalg.eig(weight)
    return torch.cat([torch.view_as_real(values).flatten(), vectors.abs().flatten()])


def rows(weight):
    return functional.embedding_bag(
        torch.tensor([[0, 1], [2, 0], [1, 1]]), weight, sparse=True, mode="sum"
    )


@pytest.mark.parametrize("make", [eigenvalues, rows])
def test_gradients_of_derived_tensors_are_pulled_back_one_by_one(make):
    torch.manual_seed(0)
    model = Made(make, torch.randn(3, 3, dtype=torch.float64)).eval()
    x = torch.randn(5, 25, dtype=torch.float64)
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)
    assert not gradood.explain(model, x).fallbacks


def test_what_autograd_cannot_differentiate_is_an_error_that_says_so():
    model = Made(lambda w: (w + 2).acosh_(), torch.rand(3, 3, dtype=torch.float64)).eval()
    with pytest.raises(ModelError, match="cannot differentiate .* weight.*acosh"):
        gradood.gradient_norms(model, torch.randn(5, 25, dtype=torch.float64))


PLACES = torch.tensor([[2, 0, -1], [2, 1, 0]])
GATHERS = {
    "rows": lambda w: w[PLACES],
    "rows, then a chain": lambda w: w[PLACES].permute(2, 0, 1).contiguous().tanh().unsqueeze(0),
    "rows, moved about": lambda w: (
        w[PLACES].view(3, 2, -1).permute(-1, 0, 1).contiguous()[None].transpose(-1, 1).unsqueeze(-2)
    ),
    "rows, turned and flattened": lambda w: w[PLACES].transpose(0, 2).reshape(-1).unsqueeze(1),
    "rows of a part": lambda w: w[1:][PLACES[:, :2].clamp(max=1)],
    "columns": lambda w: w[:, PLACES],
    "elements": lambda w: w[PLACES, PLACES.flip(0)],
    "mask": lambda w: w[torch.tensor([True, False, True])],
    "selected": lambda w: w.index_select(0, PLACES.flatten() % 3),
    "twice": lambda w: w[PLACES] + w[PLACES.flip(0)],
}


@pytest.mark.parametrize("gather", GATHERS)
def test_rows_that_a_model_gathers(gather):
    torch.manual_seed(0)
    model = Made(GATHERS[gather], torch.randn(3, 3, dtype=torch.float64)).eval()
    x = torch.randn(5, 25, dtype=torch.float64)
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)
    assert not gradood.explain(model, x).fallbacks


@pytest.mark.parametrize("gather, found", [("rows", True), ("columns", False), ("twice", False)])
def test_only_whole_rows_are_added_as_rows(gather, found):
    weight = torch.randn(3, 3, requires_grad=True)
    live = GATHERS[gather](weight)
    assert (through_rows(live, weight, torch.ones(2, *live.shape)) is not None) is found


@pytest.mark.parametrize("gather", ["rows", "rows, moved about", "rows, turned and flattened"])
def test_what_only_moves_rows_about_needs_no_backward_pass(gather, monkeypatch):
    weight = torch.randn(3, 3, requires_grad=True)
    live = GATHERS[gather](weight)
    gradient = torch.randn(2, *live.shape)
    expected = [torch.autograd.grad(live, weight, g, retain_graph=True)[0] for g in gradient]
    monkeypatch.setattr(torch.autograd, "grad", None)
    torch.testing.assert_close(through_rows(live, weight, gradient), torch.stack(expected))
