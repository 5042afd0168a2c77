"""Heads that are no softmax: several labels at once, and numbers."""

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from gradood.gradients import gradient_norms

N = 6


def network(outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, outputs)).eval()


def loop(model, x, loss):
    model = model.double()
    rows = []
    for i, row in enumerate(x.double()):
        gradients = torch.autograd.grad(loss(model(row[None]), i), list(model.parameters()))
        rows.append(torch.stack([g.square().sum() for g in gradients]))
    return torch.stack(rows)


@pytest.fixture
def x():
    return torch.randn(N, 5, generator=torch.Generator().manual_seed(0))


def test_every_label_of_a_multi_label_head_has_its_own_sigmoid(x):
    labels = (torch.rand(N, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    found = gradient_norms(network(4), x, label=labels).values.double()

    def loss(z, i):
        return binary_cross_entropy_with_logits(z, labels[i : i + 1].double(), reduction="sum")

    torch.testing.assert_close(found, loop(network(4), x, loss), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("outputs", [1, 3])
def test_numbers_of_a_regression_head_are_differentiated_themselves(x, outputs):
    found = gradient_norms(network(outputs), x, label="all_hot", loss="logit").values.double()
    expected = loop(network(outputs), x, lambda z, i: z.sum())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
    # The squared error of target t, (z - t)², has 2 |z - t| times that gradient.
    if outputs == 1:
        t = 0.3
        z = network(1)(x).detach().double()
        squared = loop(network(1), x, lambda z, i: (z - t).square().sum())
        torch.testing.assert_close((4 * (z - t).square()) * found, squared, rtol=1e-4, atol=1e-9)
