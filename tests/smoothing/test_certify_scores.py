"""Decisions, means and quantiles of scores whose smoothed values are known, and of detectors."""

import math
from functools import partial

import pytest
import torch
from scipy.special import ndtr, ndtri

import gradood
from gradood.data import embedded_images
from gradood.errors import InputError, ModelError, NotFittedError

slow = pytest.mark.slow


def first(x):
    """A score that under noise sigma is normal about ``x[0]``."""
    return x[:, 0]


def step(x):
    """1 beyond zero: smoothed, it is Phi(x[0] / sigma)."""
    return (x[:, 0] > 0).float()


def test_decisions_within_a_radius(points):
    x = points(2.0, -2.0, 0.1)
    smoothing = gradood.Smoothing(sigma=0.5, n=20_000)
    found = gradood.certify_decision(first, x, settings=smoothing, threshold=0.0, radius=0.5)
    assert found.decision.tolist() == [1, -1, 0]
    assert found.radius.tolist() == [0.5, 0.5, 0.0]
    assert (found.samples <= 512).all(), "all three are clear"


def test_largest_radius_of_a_decision(points):
    x = points(0.8, -0.8, 0.0)
    smoothing = gradood.Smoothing(sigma=0.5, n=8000)
    found = gradood.certify_decision(first, x, settings=smoothing, threshold=0.0)
    assert found.decision.tolist() == [1, -1, 0]
    assert (found.radius[:2] <= 0.8).all() and (found.radius[:2] > 0.7).all()
    assert found.lower[0] < ndtr(1.6) < found.upper[0]
    assert found.samples.tolist() == [8000] * 3


def test_a_quantile_other_than_the_median(points):
    """The 10 % quantile is above the threshold out to x - 0.5 * 1.28 only."""
    smoothing = gradood.Smoothing(sigma=0.5, n=8000, seed=0)
    arguments = {"threshold": 0.0, "q": 0.1}
    found = gradood.certify_decision(first, points(1.2), settings=smoothing, **arguments)
    truth = 1.2 + 0.5 * ndtri(0.1)
    assert truth - 0.1 < found.radius[0] <= truth
    near = gradood.certify_decision(first, points(1.2), settings=smoothing, **arguments, radius=0.4)
    beyond = gradood.certify_decision(
        first, points(1.2), settings=smoothing, **arguments, radius=0.7
    )
    assert near.decision[0] == 1 and beyond.decision[0] == 0


def test_radius_zero_decides_the_point_itself(points):
    smoothing = gradood.Smoothing(sigma=0.5, n=2000)
    found = gradood.certify_decision(
        first, points(0.3, -0.3), settings=smoothing, threshold=0, radius=0
    )
    assert found.decision.tolist() == [1, -1]


def test_nan_counts_against_either_claim(points):
    def broken(x):
        return torch.where(x[:, 1] > 0, torch.nan, x[:, 0])

    smoothing = gradood.Smoothing(sigma=0.5, n=500)
    for radius in (None, 0.0):
        found = gradood.certify_decision(
            broken, points(5.0, -5.0), settings=smoothing, threshold=0.0, radius=radius
        )
        assert found.decision.tolist() == [0, 0]


@pytest.mark.parametrize("value, decision", [(math.inf, 1), (-math.inf, -1), (0.0, -1)])
def test_infinite_scores_and_ties_decide(points, value, decision):
    """A score equal to the threshold is not above it."""
    smoothing = gradood.Smoothing(sigma=0.5, n=500)
    found = gradood.certify_decision(
        lambda x: torch.full((len(x),), value),
        points(0.0),
        settings=smoothing,
        threshold=0.0,
        radius=0.2,
    )
    assert found.decision[0] == decision


def test_float64_scores_are_compared_as_they_are(points):
    def barely(x):
        return torch.full((len(x),), 1.0 + 1e-12, dtype=torch.float64)

    smoothing = gradood.Smoothing(sigma=0.5, n=200)
    found = gradood.certify_decision(
        barely, points(0.0), settings=smoothing, threshold=1.0, radius=0.1
    )
    assert found.decision[0] == 1


def test_no_failure_beyond_alpha_on_borderline_decisions():
    """Two hundred points whose true radius is just below the target; see the test of classes."""
    smoothing = gradood.Smoothing(sigma=1.0, n=400, alpha=0.05, futility=0.0)
    x = torch.zeros(200, 4)
    x[:, 0] = 0.4999
    found = gradood.certify_decision(first, x, settings=smoothing, threshold=0.0, radius=0.5)
    assert int((found.decision != 0).sum()) < 20


def test_means_hold_and_are_near_the_truth(points):
    x = points(0.3, -0.5)
    smoothing = gradood.Smoothing(sigma=0.5, n=10_000)
    radii = torch.tensor([0.0, 0.2, 0.5])
    found = gradood.certify_mean(step, x, settings=smoothing, radius=radii)
    assert found.lower.shape == found.upper.shape == (2, 3)
    worst = torch.special.ndtr((x[:, :1].double() - radii) / 0.5)
    best = torch.special.ndtr((x[:, :1].double() + radii) / 0.5)
    assert (found.lower <= worst).all() and (found.upper >= best).all()
    assert (found.lower > worst - 0.05).all() and (found.upper < best + 0.05).all()


@pytest.mark.parametrize("bad", [-1e-6, 1.001, math.inf, -math.inf])
def test_scores_outside_the_unit_interval_are_refused(points, bad):
    def score(x):
        result = torch.full((len(x),), 0.5)
        result[3] = bad
        return result

    with pytest.raises(InputError, match=r"\[0, 1\]"):
        gradood.certify_mean(score, points(0.0), settings=gradood.Smoothing(sigma=0.5))


def test_nan_is_the_worst_for_either_side_of_a_mean(points):
    smoothing = gradood.Smoothing(sigma=0.5, n=1000)
    found = gradood.certify_mean(
        lambda x: torch.where(x[:, 1] > 0, torch.nan, 0.5), points(0.0), settings=smoothing
    )
    assert 0.15 < found.lower[0, 0] < 0.25 and 0.75 < found.upper[0, 0] < 0.85


def test_float64_scores_are_not_rounded_down(points):
    """1e-9 below an edge and above the float32 next to it must not fall below."""
    value = 0.25 + 1e-9
    counted = []
    from gradood.smoothing import counting
    from gradood.smoothing.bounds.histogram import default_edges

    edges = torch.from_numpy(default_edges())
    counter = partial(counting.count_unit, edges=edges)
    values = torch.full((4,), value, dtype=torch.float64)
    counted = counter(values, torch.zeros(4, dtype=torch.long), [counting.Block(0, 0, 4)])
    column = int(counted[0].argmax())
    assert float(edges[column]) >= value


def test_quantiles_hold_and_are_near_the_truth(points):
    x = points(0.3, -2.0)
    smoothing = gradood.Smoothing(sigma=0.5, n=10_000)
    radii = torch.tensor([0.0, 0.3, 0.6])
    found = gradood.certify_quantile(first, x, settings=smoothing, radius=radii)
    worst, best = x[:, :1] - radii, x[:, :1] + radii
    assert (found.lower <= worst).all() and (found.upper >= best).all()
    assert (found.lower > worst - 0.1).all() and (found.upper < best + 0.1).all()
    assert found.samples.tolist() == [10_064] * 2


def test_quantiles_of_atoms_are_exact(points):
    """Rounding to edges must not widen the bounds of a score with few values."""
    smoothing = gradood.Smoothing(sigma=0.5, n=2000)

    def coarse(x):
        return x[:, 0].round() + 0.1  # no edge of a regular grid

    found = gradood.certify_quantile(coarse, points(5.0), settings=smoothing, radius=0.1)
    exact = float(torch.tensor(5.0) + 0.1)
    assert found.upper[0, 0] == pytest.approx(exact, abs=1e-12)
    assert found.lower[0, 0] == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 1e30, -7.25, math.inf, -math.inf])
def test_quantiles_of_constant_scores(points, value):
    smoothing = gradood.Smoothing(sigma=0.5, n=500)
    found = gradood.certify_quantile(
        lambda x: torch.full((len(x),), value), points(0.0), settings=smoothing, radius=0.2
    )
    lower, upper = float(found.lower[0, 0]), float(found.upper[0, 0])
    value = float(torch.tensor(value))  # in float32
    assert lower <= value <= upper
    if math.isfinite(value):
        assert upper == value and lower == pytest.approx(value)


def test_quantiles_out_of_reach_are_infinite(points):
    """P(|Z| small) needs more than 20 samples at this radius."""
    smoothing = gradood.Smoothing(sigma=0.1, n=20)
    found = gradood.certify_quantile(first, points(0.0), settings=smoothing, radius=[0.0, 0.5])
    assert found.upper[0, 1] == math.inf and found.lower[0, 1] == -math.inf
    assert torch.isfinite(found.upper[0, 0])


def test_nan_is_the_worst_for_either_side_of_a_quantile(points):
    smoothing = gradood.Smoothing(sigma=0.5, n=1000)
    found = gradood.certify_quantile(
        lambda x: torch.where(x[:, 1] > 0, torch.nan, x[:, 0]), points(0.0), settings=smoothing
    )
    assert found.lower[0, 0] == -math.inf and found.upper[0, 0] == math.inf


@pytest.mark.parametrize("q", [0.0, 1.0, -0.5, math.nan])
def test_quantile_out_of_range_is_refused(points, q):
    smoothing = gradood.Smoothing(sigma=0.5)
    with pytest.raises(InputError, match="q ="):
        gradood.certify_quantile(first, points(0.0), settings=smoothing, q=q)
    with pytest.raises(InputError, match="q ="):
        gradood.certify_decision(first, points(0.0), settings=smoothing, threshold=0.0, q=q)


@pytest.mark.parametrize("radius", [-1.0, math.nan, [0.1, math.inf], []])
def test_radii_out_of_range_are_refused(points, radius):
    for certify in (gradood.certify_mean, gradood.certify_quantile):
        with pytest.raises(InputError, match="radius"):
            certify(step, points(0.0), settings=gradood.Smoothing(sigma=0.5), radius=radius)


def test_thresholds_that_are_missing_or_nan_are_refused(points, classifier):
    smoothing = gradood.Smoothing(sigma=0.5)
    with pytest.raises(InputError, match="threshold"):
        gradood.certify_decision(first, points(0.0), settings=smoothing)
    with pytest.raises(InputError, match="NaN"):
        gradood.certify_decision(first, points(0.0), settings=smoothing, threshold=math.nan)
    with pytest.raises(NotFittedError, match="calibrate"):
        gradood.certify_decision(gradood.Energy(classifier), points(0.0), settings=smoothing)
    unfitted = gradood.GradientKNN(classifier)
    with pytest.raises(NotFittedError, match="fit"):
        gradood.certify_decision(unfitted, points(0.0), settings=smoothing, threshold=0.0)


def test_scores_of_a_wrong_shape_are_refused(points):
    smoothing = gradood.Smoothing(sigma=0.5)
    with pytest.raises(ModelError, match=r"\[N\]"):
        gradood.certify_quantile(lambda x: x, points(0.0), settings=smoothing)
    column = gradood.certify_quantile(
        lambda x: x[:, :1], points(0.0), settings=gradood.Smoothing(sigma=0.5, n=64)
    )
    assert column.lower.shape == (1, 1)


@pytest.mark.parametrize(
    "name",
    ["Energy", "MaxSoftmax", "GradientMahalanobis", pytest.param("GradientKNN", marks=slow)],
)
def test_decisions_of_detectors_on_the_embedded_classifier(name, classifier):
    """Letters are anomalous, clothes are not: the threshold is calibrated on smoothed scores."""
    normal, letters = embedded_images("fashion-mnist"), embedded_images("glyphs")
    detector = getattr(gradood, name)(classifier, progress=False)
    if name.startswith("Gradient"):
        detector.fit(embedded_images("fashion-mnist-train")[:200])
    smoothing = gradood.Smoothing(sigma=0.02, n=96, n0=16, alpha=0.01)
    smoothed = gradood.certify_quantile(detector, normal[:4], settings=smoothing)
    threshold = float(smoothed.upper.max())
    x = torch.cat([normal[:4], letters[:6]])
    found = gradood.certify_decision(
        detector, x, settings=smoothing, threshold=threshold, radius=0.005
    )
    # On the very inputs and noise that it was calibrated with, nothing can be called anomalous.
    assert (found.decision[:4] != 1).all()
    assert (found.decision[4:] == 1).sum() >= 1, "no letter is found anomalous"
    assert ((found.radius == 0.005) == (found.decision != 0)).all()
    assert detector.progress is False, "the detector itself is not touched"
