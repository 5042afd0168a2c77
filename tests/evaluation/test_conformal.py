"""p-values against enumeration, error rates against simulation, envelopes against counting."""

import itertools
import math

import numpy as np
import pytest
import torch

import gradood
from gradood.detectors.conformal import conformal_p_values
from gradood.errors import InputError, NotFittedError
from gradood.evaluation import bound_false_discoveries, control_fdr, worst_case_p_values
from gradood.evaluation.conformal import _stays_below, envelope


def test_p_values_count_ties_against_the_score():
    known = torch.tensor([1.0, 2.0, 2.0, 3.0])
    scores = torch.tensor([0.0, 2.0, 2.5, 3.0, 4.0, math.nan, math.inf])
    expected = torch.tensor([5.0, 4, 2, 2, 1, 1, 1], dtype=torch.float64) / 5
    assert torch.equal(conformal_p_values(known, scores), expected)
    with_nan = torch.tensor([1.0, math.nan])
    assert conformal_p_values(with_nan, torch.tensor([math.nan])).item() == pytest.approx(2 / 3)


def test_every_order_of_scores_is_a_p_value_of_its_own():
    """Exact: over all orders of six scores, with ties, P(p <= t) <= t."""
    for scores in ((1.0, 2, 3, 4, 5, 6), (1.0, 1, 2, 2, 2, 3), (1.0,) * 6):
        p = np.array(
            [
                conformal_p_values(torch.tensor(order[:5]), torch.tensor(order[5:])).item()
                for order in itertools.permutations(scores)
            ]
        )
        for t in np.arange(1, 7) / 6:
            assert (p <= t + 1e-12).mean() <= t + 1e-12


def test_benjamini_hochberg_by_hand():
    p = torch.tensor([0.001, 0.9, 0.03, 0.02, 0.2], dtype=torch.float64)
    assert control_fdr(p, level=0.05).tolist() == [True, False, True, True, False]
    assert control_fdr(p, level=0.05, method="by").tolist() == [True, False, False, False, False]
    # One p-value in five is above 1/2: pi = 2 / 2.5.
    assert (
        control_fdr(p, level=0.041, method="storey").sum() == 3
        and control_fdr(p, level=0.041).sum() == 1
    )
    assert control_fdr([0.9] * 4, level=0.5).sum() == 0 and control_fdr([], level=0.5).shape == (0,)
    # Equality counts, whatever rounding makes of it.
    assert control_fdr([0.1 * 3 / 3] * 3, level=0.1).all()


@pytest.mark.parametrize(
    "p, options",
    [
        ([0.5, 1.2], {}),
        ([math.nan], {}),
        ([[0.5]], {}),
        ([0.5], {"level": 0.0}),
        ([0.5], {"method": "other"}),
        ([0.5], {"level": 2.0}),
    ],
)
def test_wrong_arguments_are_named(p, options):
    with pytest.raises(InputError):
        control_fdr(p, **options)


def test_the_envelope_is_the_share_of_orders():
    """Every order of three calibration and four normal scores, counted."""
    n, m = 3, 4
    limits = np.array([1, 2, 4])
    inside = 0
    for places in itertools.combinations(range(n + m), n):
        before = np.array(places) - np.arange(n)  # normal scores above the k-th
        inside += (before <= limits).all()
    assert _stays_below(limits, m) == pytest.approx(inside / math.comb(n + m, n), rel=1e-12)
    found = envelope(200, 50, 0.1)
    assert _stays_below(found[:-1], 50) >= 0.9 and found[-1] == 50


def test_bounds_of_false_discoveries_hold_at_every_threshold():
    rng = np.random.default_rng(0)
    failed = small = 0
    for _ in range(500):
        known = torch.from_numpy(rng.standard_normal(200))
        scores = torch.from_numpy(np.append(rng.standard_normal(80), 4 + rng.standard_normal(20)))
        p = conformal_p_values(known, scores).numpy()
        bound = bound_false_discoveries(p, 200, delta=0.1)
        true = np.searchsorted(np.sort(p[:80]), p, side="right")
        called = np.searchsorted(np.sort(p), p, side="right")
        failed += bool((true > bound).any())
        small += (bound[80:] < called[80:]).mean() / 500
        assert (bound <= called).all() and (np.diff(bound[np.argsort(p)]) >= 0).all()
    assert failed <= 70 and small > 0.9, "the bound says something"
    assert bound_false_discoveries([], 10).shape == (0,)


@pytest.fixture(scope="module")
def detector():
    from gradood.data import embedded_classifier, embedded_images

    model, train = embedded_classifier(), embedded_images("fashion-mnist-train")
    return gradood.Energy(model).calibrate(train[:300], fpr=0.1)


def test_detectors_have_p_values_that_files_keep(detector, tmp_path):
    from gradood.data import embedded_images

    x = embedded_images("fashion-mnist")[:200]
    p = detector.p_values(x)
    # predict asks whether the p-value is at most fpr.
    assert torch.equal(p <= 0.1, detector.predict(x))
    detector.save(tmp_path / "d.safetensors")
    again = gradood.load(tmp_path / "d.safetensors", detector.model)
    assert torch.equal(again.p_values(x), p) and again.calibration == detector.calibration
    with pytest.raises(NotFittedError, match="calibrate"):
        gradood.Energy(detector.model).p_values(x)
    fixed = gradood.load(tmp_path / "d.safetensors", detector.model)
    fixed.threshold = 0.0
    with pytest.raises(NotFittedError, match="calibrate"):
        fixed.p_values(x)


def first(z):
    return z[:, 0]


def certified(x, settings, **options):
    return gradood.certify_quantile(first, x, settings=settings, **options)


def test_worst_case_p_values_survive_a_move_within_the_radius():
    """A normal input, moved upwards by the radius: its p-value stays a p-value."""
    torch.manual_seed(0)
    settings = gradood.Smoothing(sigma=0.5, n=200, alpha=0.01, n0=32, tile=64)
    failed, clean = 0, 0
    inputs = 150
    known = certified(torch.randn(99, 4), settings)
    x = torch.randn(inputs, 4)
    x[:, 0] += 0.5
    moved = certified(x, settings, radius=[0.0, 0.5], ids=range(100, 100 + inputs))
    p = worst_case_p_values(known, moved)
    clean, failed = (p <= 0.2).mean(0)
    assert failed <= 0.2 + 3 * 0.05 and clean > failed
    assert (p[:, 1] >= p[:, 0]).all() and p.max() <= 1


def test_worst_case_p_values_refuse_what_does_not_belong_together():
    x = torch.randn(20, 4)
    settings = gradood.Smoothing(sigma=0.5, n=100, seed=3)
    known = certified(x, settings)
    with pytest.raises(InputError, match="the same noise"):
        worst_case_p_values(known, certified(x, settings))
    other = gradood.Smoothing(sigma=0.5, n=101)
    with pytest.raises(InputError, match="other settings"):
        worst_case_p_values(known, certified(x, other))
    apart = certified(x, gradood.Smoothing(sigma=0.5, n=100), q=0.7)
    with pytest.raises(InputError, match="same q"):
        worst_case_p_values(known, apart)
