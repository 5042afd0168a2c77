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
from gradood.smoothing import classes as class_certificates, decisions, verify, verify_with_model
from gradood.smoothing.bounds import anytime, binomial, mean, quantile, sequential

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
        found = certify(model, x, settings=SMOOTHING, state=state, more=more, **options)
        reached.append(found.evidence.rows[0]["samples"])
        records = json.loads(json.dumps(found.evidence.records()))
        assert [verify(record) for record in records] == [None, None]
        assert verify_with_model(records, model, x) == [None, None]
    assert reached == [100, 600, 1000]
    assert certify(model, x, settings=SMOOTHING, more=1000, **options).evidence == found.evidence
    with pytest.raises(CheckpointError, match="anytime"):
        certify(model, x, settings=SMOOTHING, state=state, **options)
    forged = records[0] | {"anytime": False}
    assert verify(forged) is not None


@pytest.mark.parametrize("more", [0, -5, 1.5, True, "10"])
def test_what_is_no_number_of_samples_is_refused(more, points):
    with pytest.raises(InputError, match="more"):
        gradood.certify_class(classes, points(1.0), settings=SMOOTHING, more=more)


def test_more_does_not_go_with_a_radius(points):
    with pytest.raises(InputError, match="radius=None"):
        gradood.certify_class(classes, points(1.0), settings=SMOOTHING, more=10, radius=0.1)
    with pytest.raises(InputError, match="radius=None"):
        gradood.certify_decision(
            first, points(1.0), settings=SMOOTHING, threshold=0, more=10, radius=0.1
        )


def crossing(limits, p):
    """The exact probability that a count reaches its limit at any number of trials."""
    alive, crossed = np.ones(1), 0.0
    for limit in limits:
        alive = np.convolve(alive, [1 - p, p])
        crossed += alive[limit:].sum()
        alive = alive[:limit]
    return crossed


def exact_failures(wrong, looks, p):
    """The probability that a count is wrong at one of the looks, by an exact calculation."""
    alive, failed = np.ones(1), 0.0
    for before, here in zip([0, *looks], looks, strict=False):
        alive = np.convolve(alive, stats.binom.pmf(np.arange(here - before + 1), here - before, p))
        bad = wrong(np.arange(len(alive)), here)
        failed += alive[bad].sum()
        alive = np.where(bad, 0, alive)
    return failed


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_alpha_holds_over_all_looks_by_an_exact_calculation(p, alpha):
    n = np.arange(1, 1501)
    limits = quantile.anytime_upper_rank(n, p, alpha, planned=400)
    spent = crossing(limits.tolist(), p)
    assert spent <= alpha
    assert spent > 0.45 * alpha or p in (0.02, 0.99)
    # The bound is above p exactly where the count has reached its limit.
    for trials in (5, 60, 400, 700, 1000):
        counts = np.arange(trials + 1)
        above = anytime.lower(counts, trials, alpha, 400) > p
        assert above.tolist() == (counts >= limits[trials - 1]).tolist()


def test_shares_of_all_looks_add_up_to_one():
    for planned in (10, 1000, 10_000, 123_456):
        n = np.arange(1, 200_000)
        assert anytime.ALWAYS + anytime.share(n, planned).sum() == pytest.approx(1)


@pytest.mark.parametrize("tile", [1, 16, 64])
@pytest.mark.parametrize("c", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.05, 0.0005])
def test_the_whole_test_spends_alpha_at_most_by_an_exact_calculation(tile, c, alpha):
    """``decide`` at every look of its schedule, the last one included, at p = p0."""
    p0, n_max = float(ndtr(c)), 400
    looks = schedule(n_max, tile)

    def wrong(counts, here):
        answers = sequential.decide(counts, here, p0, alpha, 0.0, n_max, tile)
        return answers == sequential.CERTIFY

    failed = exact_failures(wrong, looks, p0)
    assert failed <= alpha
    assert failed >= 0.7 * alpha or c == 2.0, "and most of it is spent"
    level = sequential.level(p0, alpha, n_max, tile)
    by_hand = sequential.spent(p0, level, n_max, tile) + sequential.left(p0, alpha, n_max, tile)
    assert by_hand == pytest.approx(alpha)


def schedule(n_max, tile):
    looks = [0]
    while looks[-1] < n_max:
        looks.append(min(looks[-1] + sequential.block_at(looks[-1], tile), n_max))
    return looks[1:]


def common(n_max, tile, **target):
    settings = {"sigma": 1.0, "alpha": 0.02, "n": n_max, "futility": 0.0}
    return {"settings": settings, "target": target, "tile": tile, "anytime": False}


@pytest.mark.parametrize("pilot, most", [([50, 14, 0], 0.4), ([30, 20, 14, 0], 0.01)])
@pytest.mark.parametrize("radii", [[0.3], [0.0, 0.3, 0.35, 1.0]])
def test_a_class_is_certified_falsely_at_most_alpha_by_an_exact_calculation(pilot, most, radii):
    """Every other vote is the runner-up's, and the true radius is just below 0.3."""
    shared = common(120, 16, radius=radii)
    p = float(ndtr(0.3 - 1e-9))

    def wrong(counts, here):
        found = []
        for count in counts.tolist():
            votes = [count, here - count] + [0] * (len(pilot) - 2)
            row = {"counts": votes, "pilot": pilot, "samples": here, "slack": 0.0}
            made = class_certificates.certificate_from(shared, row)
            found.append(made["radius"] >= 0.3 or made["lower"] > p + 1e-9)
        return np.array(found)

    failed = exact_failures(wrong, schedule(120, 16), p)
    assert most * 0.02 < failed <= 0.02


@pytest.mark.parametrize("radii", [[0.3], [0.0, 0.3, 0.35, 1.0]])
@pytest.mark.parametrize("side", [1, -1])
def test_a_decision_is_false_at_most_half_of_alpha_by_an_exact_calculation(radii, side):
    shared = common(120, 16, radius=radii, q=0.5)
    p = float(ndtr(side * (0.3 - 1e-9)))

    def wrong(counts, here):
        rows = [{"counts": [c, 0], "samples": here, "slack": 0.0} for c in counts.tolist()]
        found = [decisions.certificate_from(shared, row) for row in rows]
        return np.array([one["radius"] >= 0.3 and one["decision"] == side for one in found])

    failed = exact_failures(wrong, schedule(120, 16), p)
    assert 0.7 * 0.01 < failed <= 0.01


def test_several_radii_share_their_samples(points):
    """The largest radius that holds is found from one stream; a false one is not."""
    x = points(0.3, 0.8, 2.0)
    settings = replace(SMOOTHING, n=4000)
    for certify, model, options in (
        (gradood.certify_class, classes, {}),
        (gradood.certify_decision, first, {"threshold": 0.0}),
    ):
        found = certify(model, x, settings=settings, radius=[0.5, 0.1, 1.0], **options)
        assert found.radius.tolist() == [0.1, 0.5, 1.0]
        alone = [
            certify(model, x, settings=settings, radius=r, **options).samples
            for r in (0.1, 0.5, 1.0)
        ]
        assert (found.samples < sum(alone)).all()
        records = json.loads(json.dumps(found.evidence.records()))
        assert [verify(record) for record in records] == [None] * 3
        assert verify_with_model(records, model, x) == [None] * 3
        records[0]["result"]["radius"] = 0.5
        assert verify(records[0]) is not None


def test_ranks_of_quantiles_are_the_bounds_turned_around():
    n, alpha = np.array([50, 500]), 0.01
    upper = quantile.anytime_upper_rank(n, 0.7, alpha, 400)
    lower = quantile.anytime_lower_rank(n, 0.7, alpha, 400)
    assert (upper > quantile.upper_rank(n, 0.7, 0.0, alpha)).all()
    assert (lower < quantile.lower_rank(n, 0.7, 0.0, alpha)).all()
    assert quantile.anytime_upper_rank(n, 1.0, alpha, 400).tolist() == [51, 501]
    assert quantile.anytime_lower_rank(n, 0.0, alpha, 400).tolist() == [0, 0]


@pytest.mark.parametrize("n, least", [(1000, 0.95), (10_000, 0.98), (100_000, 0.99)])
def test_the_price_is_a_few_percent_of_the_radius(n, least):
    """Where n is what was planned; for most also at a round number that was not."""
    p = np.array([0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0])
    hits = np.round(n * p)
    fixed = ndtri(binomial.lower(hits, n, 0.0005))
    planned = ndtri(anytime.lower(hits, n, 0.0005, n))
    assert (planned / fixed >= least).all() and (planned < fixed).all()
    passing = ndtri(anytime.lower(hits, n, 0.0005, 7 * n))[2:5]
    assert (passing / fixed[2:5] >= least).all()


def test_a_mean_is_tightest_where_it_was_planned():
    scores = np.random.default_rng(0).random(400)
    counts, edges = np.histogram(scores, 256, (0, 1))[0], np.arange(1, 257) / 256
    counts = np.append(counts, [0, 0])
    bounds = [
        float(mean.upper(counts, edges, 0.0, 0.01, lambda *a, n=n: mean.always(*a, n)))
        for n in (400, 500)
    ]
    fixed = float(mean.upper(counts, edges, 0.0, 0.01))
    truth = float(mean.upper(counts, edges, 0.0, 0.01, lambda s, c, alpha: s.mean + 0 * c))
    assert truth < fixed < bounds[0] < bounds[1]


def test_looking_until_it_pleases_fails_at_most_alpha(half_space, points):
    """Eighty inputs with true radius 0.2, each looked at after every 50 samples up to 500."""
    smoothing = replace(SMOOTHING, sigma=1.0, alpha=0.1, seed=None, n0=32)
    x = points(*[0.2] * 80)
    ever = torch.zeros(80, dtype=torch.bool)
    settings = gradood.Smoothing(sigma=1.0, alpha=0.1, n0=32, seed=5)
    for n in range(50, 501, 50):
        ever |= gradood.certify_class(half_space, x, settings=settings, more=n).radius > 0.2
    assert int(ever.sum()) <= stats.binom.isf(1e-4, 80, 0.1)
    assert smoothing.seed is None
