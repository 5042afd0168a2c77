"""Interval bounds hold everywhere in the box, and are exact where they can be."""

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from gradood.distro import Interval, box, confidence_bound, discriminator, propagate, upper_bound
from gradood.distro.ibp import FLOAT32
from gradood.errors import InputError, ModelError


def batch_norm(channels):
    layer = nn.BatchNorm2d(channels)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.1, 3)
    nn.init.normal_(layer.weight)  # negative gains swap the ends
    return layer


def networks():
    torch.manual_seed(0)
    return {
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
        "grouped": nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, groups=2)),
        "dilated": nn.Sequential(nn.Conv2d(1, 2, 3, padding=2, dilation=2, bias=False), nn.ReLU()),
        "norm": nn.Sequential(nn.Conv2d(1, 3, 3), batch_norm(3), nn.ReLU(), nn.Conv2d(3, 2, 3)),
        "norm alone": nn.Sequential(nn.Conv2d(1, 8, 1), batch_norm(8)),
        "pools": nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 3, 1)
        ),
        "nested": nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
            nn.Identity(),
            nn.Flatten(),
            nn.Linear(16, 2),
        ),
    }


@pytest.mark.parametrize("name", networks())
@torch.no_grad()
def test_bounds_hold_in_a_dense_sample_and_at_corners(name):
    network = networks()[name].eval().double()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    lower, upper = box(x, epsilon=0.2)
    bounds = propagate(network, Interval(lower, upper))
    share = torch.rand(4000, 1, 1, 8, 8, generator=generator, dtype=torch.float64)
    share[2000:] = share[2000:].round()
    inside = lower + share * (upper - lower)
    values = network(inside.flatten(0, 1)).unflatten(0, (4000, 2))
    assert (values >= bounds.lower - 1e-12).all() and (values <= bounds.upper + 1e-12).all()
    # They say something: no wider than ten times what was seen.
    seen = values.amax(0) - values.amin(0)
    assert (bounds.upper - bounds.lower).sum() < 10 * seen.sum()


@torch.no_grad()
def test_an_affine_network_has_its_exact_range():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).double()
    x = torch.rand(3, 6, dtype=torch.float64)
    lower, upper = box(x, epsilon=0.3)
    corners = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).double()
    values = layer(lower[:, None] + corners * (upper - lower)[:, None])
    bounds = propagate(layer, Interval(lower, upper))
    torch.testing.assert_close(bounds.upper, values.amax(1))
    torch.testing.assert_close(bounds.lower, values.amin(1))


def exact_maximum(network, lower, upper):
    """Of a network with one hidden layer: a linear program for each pattern of active units."""
    first, _, second = network
    w, b = (p.detach().numpy() for p in first.parameters())
    v, c = (p.detach().numpy() for p in second.parameters())
    best = -np.inf
    for active in itertools.product([0, 1], repeat=len(b)):
        on = np.array(active)
        sign = 1 - 2 * on  # sign (w x + b) <= 0
        found = linprog(
            -(v[0] * on) @ w,
            A_ub=sign[:, None] * w,
            b_ub=-sign * b,
            bounds=list(zip(lower, upper, strict=True)),
        )
        if found.status == 0:
            best = max(best, -found.fun + (v[0] * on) @ b + c[0])
    return best


@pytest.mark.parametrize("seed", range(5))
def test_a_tiny_network_never_exceeds_its_bound_and_comes_near(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    x = torch.rand(4, 3, dtype=torch.float64)
    for epsilon in (0.01, 0.3):
        bound = upper_bound(network, x, epsilon=epsilon).detach()[:, 0].numpy()
        lower, upper = (end.numpy() for end in box(x, epsilon=epsilon))
        exact = np.array([exact_maximum(network, *ends) for ends in zip(lower, upper, strict=True)])
        assert (exact <= bound + 1e-9).all()
        assert (bound - exact).max() < 3 * epsilon
    at_x = network(x).detach()[:, 0].numpy()
    assert upper_bound(network, x, epsilon=0.0).detach()[:, 0].numpy() == pytest.approx(at_x)


def test_a_box_is_clipped_to_the_inputs_there_are():
    lower, upper = box(torch.tensor([[0.0, 0.005, 0.5, 1.0]]), epsilon=0.01)
    torch.testing.assert_close(lower, torch.tensor([[0.0, 0.0, 0.49, 0.99]]))
    torch.testing.assert_close(upper, torch.tensor([[0.01, 0.015, 0.51, 1.0]]))
    for x, epsilon in ((torch.tensor([[1.1]]), 0.1), (torch.tensor([[0.5]]), -0.1)):
        with pytest.raises(InputError):
            box(x, epsilon=epsilon)


def test_8_upper_logits_alone_bound_no_softmax():
    """The published code takes softmax(upper); the largest softmax needs the others' lower ends."""
    generator = torch.Generator().manual_seed(0)
    lower = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    upper = lower + torch.rand(20, 4, generator=generator, dtype=torch.float64)
    corners = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).double()
    values = lower[:, None] + corners * (upper - lower)[:, None]
    largest = values.softmax(2).amax((1, 2))
    torch.testing.assert_close(confidence_bound(Interval(lower, upper)), largest)
    assert (upper.softmax(1).amax(1) < largest).float().mean() > 0.9


def test_bounds_have_gradients_to_train_with():
    network = discriminator(4)
    upper_bound(network, torch.rand(2, 1, 28, 28), epsilon=0.01).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    "layer, message",
    [
        (nn.Sequential(nn.Sigmoid()), "no interval bound for Sigmoid; use Sequential of Linear"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.BatchNorm2d(1), "eval"),
    ],
)
def test_layers_without_a_bound_are_refused(layer, message):
    with pytest.raises(ModelError, match=message):
        upper_bound(layer, torch.rand(1, 1, 8, 8), epsilon=0.1)


@pytest.mark.parametrize("name", networks())
@torch.no_grad()
def test_boxes_hold_for_networks_that_round(name):
    """A float32 network at a point against its exact box there, which is one number wide."""
    network = networks()[name].eval()
    x = torch.rand(50, 1, 8, 8)
    exact = copy.deepcopy(network).double()
    plain = propagate(exact, box(x.double(), epsilon=0.0))
    rounded = propagate(exact, box(x.double(), epsilon=0.0), unit=FLOAT32)
    ran = network(x).double()
    assert ((ran > plain.upper) | (ran < plain.lower)).any(), "float32 rounds"
    assert ((ran <= rounded.upper) & (ran >= rounded.lower)).all()
    assert (rounded.upper - rounded.lower).max() < 1e-2
