"""Derivatives of gradient norms: values against ``gradient_norms``, slopes against differences."""

import pytest
import torch
from torch import nn

from gradood.errors import InputError
from gradood.gradients import differentiable_norms, gradient_norms

LABELS = ["all_hot", "uniform", "predicted", "k_hot:2", ["all_hot", "one_hot:1"]]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def convolutional():
    layers = [nn.Conv2d(2, 3, 3, stride=2), nn.BatchNorm2d(3), nn.Softplus()]
    layers += [nn.Conv2d(3, 4, 2, groups=1), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(4, 3))
    network[1].running_mean.uniform_(-0.2, 0.2)
    network[1].running_var.uniform_(0.5, 1.5)
    return network


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), (5,)),
    "convolutional": (convolutional, (2, 6, 6)),
    "attention": (Attention, (3, 4)),
    "recurrent": (Recurrent, (3, 4)),
}


@pytest.fixture(params=MODELS, ids=str)
def case(request):
    make, shape = MODELS[request.param]
    torch.manual_seed(0)
    model = make().double().eval()
    return model, torch.rand(3, *shape, dtype=torch.float64)


@pytest.mark.parametrize("label", LABELS, ids=str)
@pytest.mark.parametrize("loss", ["bce", "ce", "bce_softmax"])
def test_values_are_those_of_gradient_norms(case, label, loss):
    model, x = case
    found = differentiable_norms(model, x.requires_grad_(), label=label, loss=loss)
    expected = gradient_norms(model, x.detach(), label=label, loss=loss)
    assert found.names == expected.names and found.values.requires_grad
    torch.testing.assert_close(found.values.detach(), expected.values, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(found.logits.detach(), expected.logits)


@pytest.mark.parametrize(("label", "loss"), [("all_hot", "bce"), ("uniform", "ce")])
def test_derivatives_are_those_of_finite_differences(case, label, loss):
    model, x = case
    assert torch.autograd.gradcheck(
        lambda points: differentiable_norms(model, points, label=label, loss=loss).values,
        x.requires_grad_(),
        atol=1e-7,
        rtol=1e-5,
    )


def test_a_sample_does_not_influence_the_norms_of_another(case):
    model, x = case
    norms = differentiable_norms(model, x.requires_grad_()).values
    (gradient,) = torch.autograd.grad(norms[1].sum(), x)
    assert gradient[1].abs().max() > 0
    assert gradient[0].abs().max() == 0 and gradient[2].abs().max() == 0


def test_layer_norm_is_not_left_to_a_wrong_second_derivative(caplog):
    """PyTorch 2.14: under vmap, the norm of its weight has a wrong slope."""
    torch.manual_seed(0)
    model = Attention().double().eval()
    with caplog.at_level("INFO", logger="gradood"):
        differentiable_norms(model, torch.rand(2, 3, 4, dtype=torch.float64))
    assert "one by one" in caplog.text


def test_a_selection_and_no_graph_where_gradients_are_off():
    model, x = MODELS["linear"][0]().eval(), torch.rand(4, 5, requires_grad=True)
    with torch.no_grad():
        norms = differentiable_norms(model, x, parameters="2.*")
    assert norms.names == ("2.weight", "2.bias") and not norms.values.requires_grad
    assert differentiable_norms(model, x[:0]).values.shape == (0, 4)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with pytest.raises(InputError, match="loss"):
        differentiable_norms(model, x, loss="mse")
