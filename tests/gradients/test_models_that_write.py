"""Models that write to their own weights are refused before they do."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradood
from gradood.errors import GradoodError, ModelError
from tests.gradients.test_independence import layer


def normalised(m, x):
    with torch.no_grad():
        m.l.weight.div_(m.l.weight.norm(dim=1, keepdim=True))
    return m.l(x)


def assigned(m, x):
    m.l.weight.data = functional.normalize(m.l.weight.data)
    return m.l(x)


def clamped(m, x):
    m.l.weight.data.clamp_(-0.1, 0.1)
    return m.l(x)


def row_cleared(m, x):
    with torch.no_grad():
        m.l.weight[0] = 0
    return m.l(x)


def written_out(m, x):
    with torch.no_grad():
        torch.clamp(m.l.weight, -0.1, 0.1, out=m.l.weight)
    return m.l(x)


@pytest.mark.parametrize("forward", [normalised, assigned, clamped, row_cleared, written_out])
@pytest.mark.parametrize("selection", [None, "l.bias"])
def test_a_model_that_writes_to_its_weights_is_refused_before_it_does(forward, selection):
    model, x = layer(forward)
    before = model.l.weight.detach().clone()
    with pytest.raises(ModelError, match="changes the parameter l.weight"):
        gradood.gradient_norms(model, x, parameters=selection)
    assert model.l.weight.equal(before)


@pytest.mark.parametrize("table", [nn.Embedding, nn.EmbeddingBag])
def test_a_table_with_a_largest_norm_is_refused_before_it_is_rescaled(table):
    model = nn.Sequential(table(9, 5, max_norm=0.5), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randint(0, 9, (4, 6))
    model[2](nn.Flatten()(nn.Embedding(9, 5)(x) if table is nn.Embedding else torch.ones(4, 5)))
    before = model[0].weight.detach().clone()
    with pytest.raises(GradoodError):
        gradood.gradient_norms(model.eval(), x)
    assert model[0].weight.equal(before)
