import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from gradood.errors import InputError
from gradood.evaluation import evaluate, roc_points

SCORES = st.lists(st.sampled_from([-math.inf, -2.0, 0.25, 1.0, 9.0, math.inf]), min_size=1)


@given(SCORES, SCORES)
def test_every_point_is_the_rates_at_its_threshold(
    normal: list[float], anomalous: list[float]
) -> None:
    curve = roc_points(normal, anomalous)
    distinct = sorted({*normal, *anomalous}, reverse=True)
    assert np.isnan(curve.thresholds[0]) and curve.thresholds[1:].tolist() == distinct
    for fpr, tpr, threshold in list(zip(*curve, strict=True))[1:]:
        assert fpr == pytest.approx(np.mean(np.array(normal) >= threshold), abs=1e-12)
        assert tpr == pytest.approx(np.mean(np.array(anomalous) >= threshold), abs=1e-12)
    ends = curve.false_positive_rate[[0, -1]], curve.true_positive_rate[[0, -1]]
    assert [end.tolist() for end in ends] == [[0, 1], [0, 1]]


@given(SCORES, SCORES)
def test_the_area_under_the_points_is_the_auroc(
    normal: list[float], anomalous: list[float]
) -> None:
    fpr, tpr, _ = roc_points(normal, anomalous)
    area = (np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2).sum()
    assert evaluate(normal, anomalous).auroc == pytest.approx(area, abs=1e-12)


def test_nan_is_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        roc_points([math.nan], [1.0])
