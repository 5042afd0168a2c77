"""Rows that influence one another, or share a coin, are found; rows that do neither are not."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import gradood
from gradood.errors import ModelError

SMOOTHING = gradood.Smoothing(sigma=1.0, n=200, n0=64)


def two(a):
    return torch.stack([a, -a], 1)


class OneCoin(nn.Module):
    """One coin a forward pass."""

    def __init__(self, toss):
        super().__init__()
        self.toss = toss

    def forward(self, x):
        return two(torch.full((len(x),), 1.0 if self.toss() < 0.7 else -1.0))


OWN = torch.Generator().manual_seed(0)
COINS = {
    "torch": lambda: float(torch.rand(())),
    "numpy": lambda: np.random.random(),
    "python": lambda: random.random(),
    "a generator of its own": lambda: float(torch.rand((), generator=OWN)),
    "rare": lambda: 0.699 + (float(torch.rand(())) < 0.01),
}


@pytest.mark.parametrize("coin", COINS)
def test_one_coin_a_pass_is_refused(coin, points):
    with pytest.raises(ModelError, match="share their randomness"):
        gradood.certify_class(OneCoin(COINS[coin]), points(0.5), settings=SMOOTHING)


def test_a_coin_a_batch_beside_noise_of_every_row_is_refused(points):
    def model(x):
        return two(x[:, 0] + 3 * torch.randn(()) + 0.3 * torch.randn(len(x)))

    with pytest.raises(ModelError, match="share their randomness"):
        gradood.certify_class(model, points(0.5), settings=SMOOTHING)


def median(x):
    a = x.flatten(1).mean(1)
    return two(a - a.median() + 0.3 * torch.sign(a.mean()))


def pairs(x):
    return two(x[:, 0] + 0.1 * x.roll(len(x) // 2, 0)[:, 0])


def first_row(x):
    return two(x[:, 0] - x[0, 0])


def largest(x):
    return two((x / x.abs().max() * 127).round()[:, 0])


@pytest.mark.parametrize(
    "model", [median, pairs, first_row, largest, lambda x: two(x.sort(0)[0][:, 0])]
)
def test_rows_that_influence_one_another_are_refused(model, points):
    for certify, options in (
        (gradood.certify_class, {}),
        (gradood.certify_quantile, {}),
        (gradood.certify_decision, {"threshold": 0.0}),
    ):
        scored = model if certify is gradood.certify_class else (lambda x: model(x)[:, 0])
        with pytest.raises(ModelError, match="depends on the rows beside it"):
            certify(scored, points(0.5, 0.2), settings=SMOOTHING, **options)


def hidden(x):
    """Two classes a millionth apart, under the range of a third that never wins."""
    votes = 1e-6 * torch.sign(x[:, 0] - x[0, 0])
    return torch.stack([votes, -votes, torch.full_like(votes, -1000.0)], 1)


def test_coupling_below_the_range_of_the_logits_is_refused(points):
    with pytest.raises(ModelError, match="depends on the rows beside it"):
        gradood.certify_class(hidden, points(0.5), settings=SMOOTHING)


@pytest.mark.parametrize("kind", ["coin", "coupling"])
def test_what_is_rare_is_found_on_later_tiles(kind, points):
    """Nothing shows on the first tile: the coin has one side there, no row is far out."""
    random_numbers = np.random.default_rng(3)
    passes = []

    def model(x):
        passes.append(len(x))
        odd = random_numbers.random() < 0.3 if kind == "coin" else (x[:, 0] > 3.2).any()
        return two(torch.where(torch.tensor(len(passes) > 20 and bool(odd)), -x[:, 0], x[:, 0]))

    settings = gradood.Smoothing(sigma=1.0, n=8000, seed=1)
    with pytest.raises(ModelError, match="beside it"):
        gradood.certify_class(model, points(0.5), settings=settings)


def test_dynamic_quantisation_is_refused(pictures, classifier):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    torch.manual_seed(0)

    class Dynamic(nn.Module):
        def forward(self, x):
            for layer in model:
                if isinstance(layer, nn.Linear):
                    scale = x.abs().max() / 127
                    x = (x / scale).round() * scale
                x = layer(x)
            return x

    with pytest.raises(ModelError, match="dynamic quantisation"):
        gradood.certify_class(Dynamic(), pictures, settings=gradood.Smoothing(sigma=0.1, n=100))


def test_one_row_a_pass_is_independent_by_construction(points):
    """The same coin, tossed for every row, is a random model like any other."""
    torch.manual_seed(0)
    alone = gradood.Smoothing(sigma=1.0, n=300, tile=1)
    found = gradood.certify_class(OneCoin(COINS["torch"]), points(0.5), settings=alone)
    assert float(found.lower[0]) < 0.7


def test_rows_with_coins_of_their_own_get_passes_of_their_own(points, caplog):
    sizes = []

    def model(x):
        sizes.append(len(x))
        return two(x[:, 0] + torch.randn(len(x)))

    found = gradood.certify_class(model, points(5.0), settings=SMOOTHING)
    assert found.label[0] == 0 and not found.abstained[0]
    assert set(sizes[-200:]) == {1} and "pass of its own" in caplog.text


@pytest.mark.parametrize("kind", ["classifier", "detector", "batch norm in eval", "callable"])
def test_independent_models_pass(kind, classifier, pictures):
    smoothing = gradood.Smoothing(sigma=0.05, n=64)
    if kind == "detector":
        from gradood.data import embedded_images

        found = gradood.GradientKNN(classifier, progress=False)
        found.fit(embedded_images("fashion-mnist-train")[:200])
        gradood.certify_quantile(found, pictures[:2], settings=smoothing)
    elif kind == "callable":
        gradood.certify_mean(
            gradood.attacks.max_confidence(classifier), pictures[:2], settings=smoothing
        )
    elif kind == "batch norm in eval":
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 3)).eval()
        gradood.certify_class(model, pictures[:2], settings=smoothing)
    else:
        gradood.certify_class(classifier, pictures[:2], settings=smoothing, radius=0.02)
