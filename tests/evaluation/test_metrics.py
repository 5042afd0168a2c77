import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from gradood.errors import InputError
from gradood.evaluation import Metrics, evaluate

# Few distinct values, so that nearly every example has ties.
TIED = st.lists(st.sampled_from([-math.inf, -1.5, 0.0, 0.1, 2.0, 7.0, math.inf]), min_size=1)
ANY = st.lists(st.floats(allow_nan=False), min_size=1)
PAIRS = st.tuples(TIED, TIED) | st.tuples(ANY, ANY)


def by_counting(normal: list[float], anomalous: list[float]) -> Metrics:
    """Every formula of ``evaluate`` word by word, over all pairs and all thresholds."""
    wins = sum(1.0 if a > n else 0.5 if a == n else 0.0 for a in anomalous for n in normal)
    # Above the largest score nothing is called anomalous; None stands for that threshold.
    thresholds = [None, *sorted({*normal, *anomalous}, reverse=True)]

    def share(scores: list[float], threshold: float | None) -> float:
        return sum(threshold is not None and s >= threshold for s in scores) / len(scores)

    rates = [(share(normal, t), share(anomalous, t)) for t in thresholds]

    def average_precision(positive: list[float], negative: list[float]) -> float:
        total, recall = 0.0, 0.0
        for t in sorted({*positive, *negative}, reverse=True):
            hits = sum(s >= t for s in positive)
            alarms = hits + sum(s >= t for s in negative)
            total += (hits / len(positive) - recall) * (hits / alarms)
            recall = hits / len(positive)
        return total

    return Metrics(
        auroc=wins / (len(normal) * len(anomalous)),
        aupr_anomalous=average_precision(anomalous, normal),
        aupr_normal=average_precision([-s for s in normal], [-s for s in anomalous]),
        fpr95=min(fpr for fpr, tpr in rates if tpr >= 0.95),
        detection_error=min((1 - tpr + fpr) / 2 for fpr, tpr in rates),
        count_normal=len(normal),
        count_anomalous=len(anomalous),
    )


@given(PAIRS)
def test_metrics_equal_counting_over_all_pairs_and_thresholds(
    scores: tuple[list[float], list[float]],
) -> None:
    expected = [*by_counting(*scores)]
    assert [*evaluate(*scores)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [3, 40, 10**6])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_sklearn_with_few_and_many_ties(levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    normal = rng.integers(levels, size=700) / levels
    anomalous = rng.integers(levels, size=400) / levels + 0.2
    result = evaluate(normal, anomalous)
    labels, scores = np.repeat([0, 1], [700, 400]), np.concatenate((normal, anomalous))
    assert result.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = average_precision_score(labels, scores)
    assert result.aupr_anomalous == pytest.approx(expected, abs=1e-12)
    expected = average_precision_score(1 - labels, -scores)
    assert result.aupr_normal == pytest.approx(expected, abs=1e-12)
    assert (result.count_normal, result.count_anomalous) == (700, 400)


WORKED = {
    # Perfect, reversed, and nothing but ties.
    "perfect": ([1, 2], [3, 4], (1, 1, 1, 0, 0)),
    "reversed": ([3, 4], [1, 2], (0, 5 / 12, 5 / 12, 1, 0.5)),
    "all tied": ([5, 5, 5], [5], (0.5, 0.25, 0.75, 1, 0.5)),
    # Of 2 x 2 pairs, 2 > 1 and 3 > 1 and 3 > 2 win, 2 = 2 is half: 3.5 / 4. Anomalous first:
    # recall 1/2 at precision 1, then 1 at 2/3. To catch all anomalous, one of two normal goes.
    "one tie": ([1, 2], [2, 3], (7 / 8, 0.5 + 0.5 * 2 / 3, 0.5 + 0.5 * 2 / 3, 0.5, 0.25)),
    # All anomalous are +inf, and so is one of four normal.
    "infinite": (
        [0, 1, 2, math.inf],
        [math.inf] * 2,
        (7 / 8, 2 / 3, 0.75 + 0.25 * 4 / 6, 0.25, 0.125),
    ),
}


@pytest.mark.parametrize("case", WORKED)
def test_worked_examples(case: str) -> None:
    normal, anomalous, expected = WORKED[case]
    assert [*evaluate(normal, anomalous)][:5] == pytest.approx(expected, abs=1e-12)


def test_95_percent_means_at_least_95_percent() -> None:
    # 19 of 20 anomalous score 1 or more: exactly 95 %, and no normal input is above 1.
    normal = [0.5] * 10
    assert evaluate(normal, [0] + [1] * 19).fpr95 == 0
    # 18 of 19 are 94.7 %: the threshold must go down to 0, past all normal inputs.
    assert evaluate(normal, [0] + [1] * 18).fpr95 == 1


def test_the_best_threshold_may_lie_inside_a_straight_piece_of_the_curve() -> None:
    # (0, 0.9), (0.25, 0.95), (0.5, 1) lie on one line: a curve thinned out would say 0.5.
    anomalous = [9] * 18 + [5, 4]
    assert evaluate([5, 4, 1, 0], anomalous).fpr95 == 0.25


@given(PAIRS)
def test_swapping_the_sides_and_the_sign_swaps_the_classes(
    scores: tuple[list[float], list[float]],
) -> None:
    normal, anomalous = (np.array(side) for side in scores)
    straight, swapped = evaluate(normal, anomalous), evaluate(-anomalous, -normal)
    assert straight.auroc == pytest.approx(swapped.auroc, abs=1e-12)
    assert straight.aupr_normal == pytest.approx(swapped.aupr_anomalous, abs=1e-12)
    assert straight.detection_error == pytest.approx(swapped.detection_error, abs=1e-12)
    assert straight.auroc == pytest.approx(1 - evaluate(anomalous, normal).auroc, abs=1e-12)


@given(PAIRS)
def test_only_the_order_of_the_scores_matters(scores: tuple[list[float], list[float]]) -> None:
    distinct = sorted({*scores[0], *scores[1]})
    normal, anomalous = ([distinct.index(s) ** 3 for s in side] for side in scores)
    assert evaluate(normal, anomalous) == evaluate(*scores)


def test_smaller_float_types_keep_their_ties() -> None:
    values = torch.randn(300, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        normal, anomalous = values[:200].to(dtype), values[100:].to(dtype)
        result = evaluate(normal, anomalous)
        assert result == evaluate(normal.tolist(), anomalous.tolist())
        expected = [*by_counting(normal.tolist(), anomalous.tolist())]
        assert [*result] == pytest.approx(expected, abs=1e-12)
    # 1 and 1 + 2^-24 are one number in float32 and two in float64.
    close = np.array([1.0, 1.0 + 2**-24])
    assert evaluate(close[:1], close[1:]).auroc == 1
    assert evaluate(close[:1].astype(np.float32), close[1:].astype(np.float32)).auroc == 0.5


def test_tensors_arrays_and_lists_are_taken() -> None:
    normal, anomalous = [0, 1, 3], [2, 4]
    forms = [list, np.array, torch.tensor, lambda s: torch.tensor(s, dtype=torch.float32)]
    forms.append(lambda s: torch.tensor(s, dtype=torch.float64, requires_grad=True))
    results = {evaluate(f(normal), g(anomalous)) for f, g in itertools.product(forms, forms)}
    assert len(results) == 1


def test_nan_is_refused_with_its_side_and_its_rows() -> None:
    with pytest.raises(InputError, match=r"scores_anomalous holds NaN in 1 of 3 rows .*\[1\]"):
        evaluate([0.0], [1.0, math.nan, math.inf])
    with pytest.raises(InputError, match="scores_normal holds NaN in 2 of 2"):
        evaluate(torch.tensor([math.nan, math.nan]), [1.0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "empty"),
        (torch.empty(0), "empty"),
        (np.zeros((2, 1)), r"shape \[N\], got \[2, 1\]"),
        (1.0, r"shape \[N\], got \[\]"),
        ([[1.0], [1.0, 2.0]], "one list of numbers"),
        (["high", "low"], "real numbers"),
        (torch.tensor([1j]), "real numbers"),
    ],
)
def test_wrong_input_is_refused_on_both_sides(wrong: object, message: str) -> None:
    with pytest.raises(InputError, match=f"scores_normal.*{message}"):
        evaluate(wrong, [1.0])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"scores_anomalous.*{message}"):
        evaluate([1.0], wrong)  # type: ignore[arg-type]
