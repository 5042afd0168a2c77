import itertools
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gradood import evaluate_guaranteed
from gradood.errors import InputError
from gradood.evaluation import Guarantee, GuaranteedMetrics, evaluate

LEVELS = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.inf])
SCORES = st.lists(LEVELS, min_size=1, max_size=25)
NAMES = tuple(field.name for field in fields(GuaranteedMetrics))


def guarantee(normal: object, anomalous: object, **options: object) -> Guarantee:
    if options.get("composition") == "binomial":
        ids = range(len(normal)), range(len(normal), len(normal) + len(anomalous))
        options = {"noise": ids, **options}
    return evaluate_guaranteed(normal, anomalous, 0.5, **{"point_alpha": 1e-6} | options)


def no_better(bound: GuaranteedMetrics, other: object, column: int = 0) -> bool:
    """Whether the bound is at most as good as the other metrics, in every one of them."""
    signs = dict.fromkeys(NAMES, 1) | {"fpr95": -1, "detection_error": -1}
    values = {n: np.atleast_1d(getattr(bound, n))[column] for n in NAMES}
    others = {n: np.atleast_1d(getattr(other, n))[0] for n in NAMES}
    return all(signs[n] * (others[n] - values[n]) >= -1e-12 for n in NAMES)


@settings(deadline=None)  # the first call imports scikit-learn
@given(SCORES, SCORES, st.data())
def test_no_scores_within_the_bounds_have_worse_metrics(
    upper: list[float], lower: list[float], data: st.DataObject
) -> None:
    bound = guarantee(upper, lower).clean_normals
    inside = st.sampled_from([-math.inf, -1.0, -0.5, 0.0, 0.2, 0.5, 1.0, 2.0, 3.0, math.inf])
    normal = [min(u, data.draw(inside)) for u in upper]
    anomalous = [max(low, data.draw(inside)) for low in lower]
    assert no_better(bound, evaluate(normal, anomalous))


@pytest.mark.parametrize("seed", range(3))
def test_without_ties_the_bound_is_the_metric_of_the_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    normal, anomalous = rng.normal(size=60), rng.normal(1, 1, size=41)
    bound = guarantee(normal, anomalous).clean_normals
    exact = evaluate(normal, anomalous)
    for name in NAMES:
        assert getattr(bound, name)[0] == pytest.approx(getattr(exact, name), abs=1e-12), name


def test_equal_anomalous_bounds_do_not_share_the_precision_of_the_last() -> None:
    # Bounds (4, 4) allow the scores (5, 4) below a normal 6: precisions 1/2 and 2/3. As one tied
    # group they would both have 2/3.
    bound = guarantee([6.0], [4.0, 4.0]).clean_normals
    assert bound.aupr_anomalous[0] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert evaluate([6.0], [4.0, 4.0]).aupr_anomalous == pytest.approx(2 / 3)


def test_ties_are_losses() -> None:
    bound = guarantee([1.0, 1.0], [1.0]).clean_normals
    values = [float(getattr(bound, name)[0]) for name in NAMES]
    assert values == pytest.approx([0, 1 / 3, 7 / 12, 1, 0.5])


def test_an_input_without_a_bound_is_a_loss_not_a_detection() -> None:
    with_all = guarantee([0.0, 0.1], [0.5, 0.6]).clean_normals
    missing = guarantee([0.0, 0.1], [0.5, math.nan]).clean_normals
    assert (with_all.auroc[0], missing.auroc[0]) == (1, 0.5)
    assert missing.fpr95[0] == 1
    assert guarantee([0.0, math.nan], [0.5, 0.6]).clean_normals.auroc[0] == 0.5


def test_both_variants_of_normal_inputs_are_reported() -> None:
    normal = np.array([[0.3, 0.1, 0.5], [0.1, 0.0, 0.3]])
    anomalous = torch.tensor([[0.3, 0.4, 0.2], [0.8, 0.9, 0.4]], dtype=torch.bfloat16)
    result = evaluate_guaranteed(normal, anomalous, [0.25, 0.0, 0.5], point_alpha=1e-4)
    assert result.radius.tolist() == [0.25, 0.0, 0.5]
    assert result.clean_normals.auroc.tolist() == [1, 1, 1]
    assert result.moved_normals is not None
    assert result.moved_normals.auroc.tolist() == [1, 1, 0.25]
    assert result.alpha == 1e-3 and result.failures == 0
    assert (result.count_normal, result.count_anomalous) == (2, 2)
    assert guarantee([0.1], [[0.2]]).moved_normals is None


def test_bonferroni_refuses_too_large_an_alpha_and_says_which_fits() -> None:
    with pytest.raises(InputError, match="Certify with alpha = 5e-06"):
        guarantee([0.0] * 100, [1.0] * 100, point_alpha=1e-5)
    assert guarantee([0.0] * 100, [1.0] * 100, point_alpha=5e-6).failures == 0


@given(st.integers(0, 2**20), st.sampled_from([0.05, 0.2]))
def test_binomial_counts_the_worst_choice_of_wrong_bounds(seed: int, point_alpha: float) -> None:
    rng = np.random.default_rng(seed)
    normal = rng.integers(6, size=rng.integers(1, 6)).astype(float)
    anomalous = rng.integers(3, 9, size=rng.integers(1, 6)).astype(float)
    options = {"point_alpha": point_alpha, "alpha": 0.1, "composition": "binomial"}
    bound = guarantee(normal, anomalous, **options)
    count = len(normal) + len(anomalous)
    cases = []
    for wrong in itertools.combinations(range(count), bound.failures):
        mask = np.isin(np.arange(count), wrong)
        worse = (
            np.where(mask[: len(normal)], math.inf, normal),
            np.where(mask[len(normal) :], -math.inf, anomalous),
        )
        cases.append(guarantee(*worse).clean_normals)
    for name in NAMES:
        values = [getattr(one, name)[0] for one in cases]
        expected = max(values) if name in ("fpr95", "detection_error") else min(values)
        assert getattr(bound.clean_normals, name)[0] == pytest.approx(expected, abs=1e-12), name


def test_binomial_gives_more_than_bonferroni_at_the_same_samples() -> None:
    # P(Bin(1000, .001) > 5) = 6e-4, > 4 it is 3.6e-3.
    wrong = guarantee([0.0] * 500, [1.0] * 500, point_alpha=1e-3, composition="binomial")
    assert wrong.failures == 5
    assert wrong.clean_normals.auroc[0] == pytest.approx(1 - 5 / 500)


def test_binomial_refuses_inputs_that_shared_their_noise() -> None:
    """By default both sets are numbered from 0: under one seed, their bounds are wrong together."""
    import torch

    import gradood

    def certified(seed: int | None, ids: range | None = None) -> gradood.smoothing.Evidence:
        settings = gradood.Smoothing(sigma=1.0, n=100, alpha=0.01, seed=seed)
        x = torch.zeros(3, 1, 2, 2)
        return gradood.certify_quantile(
            lambda z: z.flatten(1).sum(1), x, settings=settings, ids=ids
        ).evidence

    bounds, options = ([0.0] * 3, [1.0] * 3), {"point_alpha": 0.01, "composition": "binomial"}
    for noise in ((certified(7), certified(7)), ([0, 1, 2], [2, 3, 4]), ([0, 1, 1], [2, 3, 4])):
        with pytest.raises(InputError, match="the same noise"):
            evaluate_guaranteed(*bounds, 0.5, noise=noise, **options)
    for noise in (
        (certified(7), certified(7, range(3, 6))),
        (certified(7), certified(8)),
        (certified(None), certified(None)),
    ):
        assert evaluate_guaranteed(*bounds, 0.5, noise=noise, **options).failures >= 0
    with pytest.raises(InputError, match="normal.evidence"):
        evaluate_guaranteed(*bounds, 0.5, **options)
    with pytest.raises(InputError, match="names 2 normal inputs"):
        evaluate_guaranteed(*bounds, 0.5, noise=([0, 1], [2, 3, 4]), **options)


BAD = {
    "no inputs": (dict(upper_normal=[]), "upper_normal is empty"),
    "bounds at two radii": (dict(lower_anomalous=[[0.1, 0.2]]), r"lower_anomalous must have shape"),
    "negative radius": (dict(radius=-0.1), "radius must be distinct"),
    "radius not a number": (dict(radius=math.nan), "radius must be distinct"),
    "radius twice": (dict(radius=[0.1, 0.1], lower_anomalous=[[1, 1]]), "radius must be distinct"),
    "no radius 0": (dict(upper_normal=[[0.1]]), "radius must hold 0"),
    "alpha": (dict(alpha=1.0), r"^alpha = 1.0; expected a number in \(0, 1\)"),
    "point alpha": (dict(point_alpha=0.0), r"point_alpha = 0.0; expected a number in \(0, 1\)"),
    "composition": (
        dict(composition="max"),
        r"composition = .max.; expected .bonferroni. or .binomial.",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    change, message = BAD[case]
    good = dict(upper_normal=[0.1], lower_anomalous=[0.5], radius=0.25, point_alpha=1e-5)
    with pytest.raises(InputError, match=message):
        evaluate_guaranteed(**good | change)
