"""The spread of a score whose quartiles are known, at the input and near it."""

import json

import numpy as np
import pytest
import torch
from scipy.special import ndtri

import gradood
from gradood.errors import InputError
from gradood.evaluation import evaluate_guaranteed
from gradood.smoothing import verify, verify_with_model

SMOOTHING = gradood.Smoothing(sigma=0.5, n=2000, alpha=0.01, seed=4)
IQR = 2 * float(ndtri(0.75))


def bent(z):
    """A line whose slope is 1 below 0 and 3 above: its spread depends on where it is."""
    return torch.where(z[:, 0] < 0, z[:, 0], 3 * z[:, 0])


def test_the_spread_of_a_line_is_bounded_from_both_sides(points):
    found = gradood.certify_spread(lambda z: 2 * z[:, 0], points(0.3, -1.0), settings=SMOOTHING)
    truth = 2 * 0.5 * IQR
    assert (found.spread_lower <= truth).all() and (found.spread_upper >= truth).all()
    assert (found.spread_upper - found.spread_lower < 0.4 * truth).all()
    middle = 2 * torch.tensor([0.3, -1.0]).double() + truth
    assert (found.lower[:, 0] <= middle).all() and (found.upper[:, 0] >= middle).all()
    assert (found.score - middle).abs().max() < 0.2


def test_bounds_hold_wherever_the_input_moves(points):
    radii = [0.0, 0.2, 0.4]
    found = gradood.certify_spread(bent, points(0.0), settings=SMOOTHING, radius=radii, weight=2.0)
    noise = 0.5 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    for column, radius in enumerate(radii):
        for move in (-radius, -radius / 2, 0.0, radius / 2, radius):
            scores = bent((noise + move)[:, None]).numpy()
            first, median, third = np.quantile(scores, [0.25, 0.5, 0.75])
            spread = third - first
            assert found.spread_lower[0, column] <= spread <= found.spread_upper[0, column]
            assert found.lower[0, column] <= median + 2 * spread <= found.upper[0, column]
    assert (found.spread_upper.diff(dim=1) > 0).all() and (
        found.spread_lower.diff(dim=1) <= 0
    ).all()


def test_records_are_verified_and_continued(points, tmp_path):
    x, state = points(0.3, -1.0), tmp_path / "state.safetensors"
    common = {"score": bent, "x": x, "settings": SMOOTHING}
    made = gradood.certify_spread(**common, radius=[0.0, 0.1], weight=0.5)
    records = json.loads(json.dumps(made.evidence.records()))
    assert [verify(record) for record in records] == [None, None]
    assert verify_with_model(records, bent, x) == [None, None]
    records[1]["target"]["weight"] = 5.0
    assert verify_with_model(records, bent, x)[1] is not None
    widths = []
    for _ in range(2):
        some = gradood.certify_spread(**common, state=state, more=1000)
        widths.append(float((some.spread_upper - some.spread_lower).mean()))
        assert [verify(record) for record in some.evidence.records()] == [None, None]
    assert widths[1] < widths[0] and some.samples.tolist() == [2064, 2064]


def test_infinite_and_missing_scores_have_bounds_that_say_so(points):
    def score(z):
        return torch.where(z[:, 0] > 0, torch.inf, torch.where(z[:, 0] < -0.7, torch.nan, z[:, 0]))

    found = gradood.certify_spread(score, points(0.0), settings=SMOOTHING, radius=[0.0, 5.0])
    for bound in (found.spread_lower, found.spread_upper, found.lower, found.upper, found.score):
        assert not bound.isnan().any()
    assert found.spread_upper.isinf().all() and (found.spread_lower >= 0).all()
    json.dumps(found.evidence.records()[0]["counts"])


def test_what_is_strange_by_its_spread_alone_is_guaranteed(points):
    """Both kinds have median 0; the anomalous ones scatter three times as far."""
    normal, strange = points(*[0.0] * 6), points(*[0.0] * 6)
    strange[:, 1] = 1.0

    def score(z):
        return z[:, 0] * torch.where(z[:, 1] > 0.5, 4.0, 1.0)

    settings = gradood.Smoothing(sigma=0.1, n=2000, alpha=1e-4)
    upper = gradood.certify_spread(score, normal, settings=settings, weight=3).upper[:, 0]
    lower = gradood.certify_spread(score, strange, settings=settings, radius=0.02, weight=3).lower
    spread = evaluate_guaranteed(upper, lower, 0.02, point_alpha=1e-4, alpha=0.01)
    median = evaluate_guaranteed(
        gradood.certify_quantile(score, normal, settings=settings).upper[:, 0],
        gradood.certify_quantile(score, strange, settings=settings, radius=0.02).lower,
        0.02, point_alpha=1e-4, alpha=0.01,
    )  # fmt: skip
    assert spread.clean_normals.auroc[0] > 0.9 > median.clean_normals.auroc[0]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), "1", True])
def test_a_weight_that_means_nothing_is_refused(points, weight):
    with pytest.raises(InputError, match="weight"):
        gradood.certify_spread(bent, points(0.0), settings=SMOOTHING, weight=weight)
