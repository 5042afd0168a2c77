"""Certificates that may be looked at, and continued, as one likes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtr, ndtri

import gradood
from gradood.errors import CheckpointError, InputError
from gradood.smoothing import verify, verify_with_model
from gradood.smoothing.bounds import binomial, quantile, sequential

SMOOTHING = gradood.Smoothing(sigma=0.5, n=100, seed=2)


def classes(x):
    return torch.stack([-x[:, 0], x[:, 0]], 1)


def first(x):
    return x[:, 0]


KINDS = {
    "class": (gradood.certify_class, classes, {}),
    "quantile": (gradood.certify_quantile, first, {"radius": [0.0, 0.3]}),
    "mean": (gradood.certify_mean, lambda x: first(x).sigmoid(), {"radius": [0.0, 0.3]}),
    "decision": (gradood.certify_decision, first, {"threshold": 0.0}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_continued_to_what_one_run_gives(kind, points, tmp_path):
    certify, model, options = KINDS[kind]
    x, state = points(0.8, 0.1), tmp_path / "state.safetensors"
    reached = []
    for more in (100, 500, 400):
        found = certify(model, x, SMOOTHING, state=state, more=more, **options)
        reached.append(found.evidence.rows[0]["samples"])
        records = json.loads(json.dumps(found.evidence.records()))
        assert [verify(record) for record in records] == [None, None]
        assert verify_with_model(records, model, x) == [None, None]
    assert reached == [100, 600, 1000]
    assert certify(model, x, SMOOTHING, more=1000, **options).evidence == found.evidence
    with pytest.raises(CheckpointError, match="anytime"):
        certify(model, x, SMOOTHING, state=state, **options)
    forged = records[0] | {"anytime": False}
    assert verify(forged) is not None


@pytest.mark.parametrize("more", [0, -5, 1.5, True, "10"])
def test_what_is_no_number_of_samples_is_refused(more, points):
    with pytest.raises(InputError, match="more"):
        gradood.certify_class(classes, points(1.0), SMOOTHING, more=more)


def test_more_does_not_go_with_a_radius(points):
    with pytest.raises(InputError, match="radius=None"):
        gradood.certify_class(classes, points(1.0), SMOOTHING, more=10, radius=0.1)
    with pytest.raises(InputError, match="radius=None"):
        gradood.certify_decision(first, points(1.0), SMOOTHING, threshold=0, more=10, radius=0.1)


def crossing(limits, p):
    """The exact probability that a count reaches its limit at any number of trials."""
    alive, crossed = np.ones(1), 0.0
    for limit in limits:
        alive = np.convolve(alive, [1 - p, p])
        crossed += alive[limit:].sum()
        alive = alive[:limit]
    return crossed


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_alpha_holds_over_all_looks_by_an_exact_calculation(p, alpha):
    n = np.arange(1, 1501)
    spent = crossing(sequential.first_count(n, p, alpha).tolist(), p)
    assert 0.1 * alpha < spent <= alpha or p == 0.02
    assert spent <= alpha
    # The bound is above p exactly where the count has reached its limit.
    for trials in (5, 60, 700):
        counts = np.arange(trials + 1)
        above = sequential.lower(counts, trials, alpha) > p
        assert above.tolist() == (counts >= sequential.first_count(trials, p, alpha)).tolist()


@pytest.mark.parametrize("tile", [1, 16, 64])
@pytest.mark.parametrize("c", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.05, 0.0005])
def test_the_whole_test_spends_alpha_at_most_by_an_exact_calculation(tile, c, alpha):
    """``decide`` at every look of its schedule, the last one included, at p = p0."""
    p0, n_max = float(ndtr(c)), 400
    looks = [0]
    while looks[-1] < n_max:
        looks.append(min(looks[-1] + sequential.block_at(looks[-1], tile), n_max))
    alive, crossed = np.ones(1), 0.0
    for before, here in zip(looks, looks[1:], strict=False):
        alive = np.convolve(alive, stats.binom.pmf(np.arange(here - before + 1), here - before, p0))
        counts = np.arange(len(alive))
        answers = sequential.decide(counts, here, p0, alpha, 0.0, n_max, tile)
        certified = answers == sequential.CERTIFY
        crossed += alive[certified].sum()
        alive = np.where(certified, 0, alive)
    assert crossed <= alpha
    assert crossed >= 0.7 * alpha or c == 2.0, "and most of it is spent"
    by_hand = sequential.spent(p0, alpha, n_max, tile) + sequential.left(p0, alpha, n_max, tile)
    assert by_hand == pytest.approx(alpha)


def test_ranks_of_quantiles_are_the_bounds_turned_around():
    n, alpha = np.array([50, 500]), 0.01
    upper = quantile.anytime_upper_rank(n, 0.7, alpha)
    lower = quantile.anytime_lower_rank(n, 0.7, alpha)
    assert (upper > quantile.upper_rank(n, 0.7, 0.0, alpha)).all()
    assert (lower < quantile.lower_rank(n, 0.7, 0.0, alpha)).all()
    assert quantile.anytime_upper_rank(n, 1.0, alpha).tolist() == [51, 501]
    assert quantile.anytime_lower_rank(n, 0.0, alpha).tolist() == [0, 0]


@pytest.mark.parametrize("n, least", [(1000, 0.94), (10_000, 0.975), (100_000, 0.99)])
def test_the_price_is_a_few_percent_of_the_radius(n, least):
    hits = np.round(n * np.array([0.9, 0.99, 1.0]))
    anytime = ndtri(sequential.lower(hits, n, 0.0005))
    fixed = ndtri(binomial.lower(hits, n, 0.0005))
    assert (anytime / fixed > least).all() and (anytime < fixed).all()


def test_looking_until_it_pleases_fails_at_most_alpha(half_space, points):
    """Eighty inputs with true radius 0.2, each looked at after every 50 samples up to 500."""
    smoothing = replace(SMOOTHING, sigma=1.0, alpha=0.1, seed=None, n0=32)
    x = points(*[0.2] * 80)
    ever = torch.zeros(80, dtype=torch.bool)
    settings = gradood.Smoothing(sigma=1.0, alpha=0.1, n0=32, seed=5)
    for n in range(50, 501, 50):
        ever |= gradood.certify_class(half_space, x, settings, more=n).radius > 0.2
    assert int(ever.sum()) <= stats.binom.isf(1e-4, 80, 0.1)
    assert smoothing.seed is None
