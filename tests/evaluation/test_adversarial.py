import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gradood import evaluate_adversarial, evaluate_guaranteed
from gradood.errors import InputError
from gradood.evaluation import GuaranteedMetrics, evaluate

#: Metrics that are better when they are larger, and when they are smaller.
SIGNS = np.array([1, 1, 1, -1, -1])
LEVELS = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.inf])
RADII = [0.5, 0.1, 1.0]  # not in order, on purpose


def merits(metrics: GuaranteedMetrics) -> np.ndarray:
    """``[5, R]``, larger is better."""
    return SIGNS[:, None] * np.stack([*metrics])


def clean_merits(normal: object, anomalous: object) -> np.ndarray:
    return SIGNS[:, None] * np.array([*evaluate(normal, anomalous)][:5])[:, None]


@settings(deadline=None)  # the first call imports scikit-learn
@given(st.data())
def test_guaranteed_is_at_most_adversarial_is_at_most_clean(data: st.DataObject) -> None:
    """For any scores with any ties, and any bounds that hold for them."""
    count = st.integers(1, 12)
    normal = data.draw(st.lists(LEVELS, min_size=1, max_size=12))
    m = data.draw(count)
    row = st.lists(LEVELS, min_size=m, max_size=m)
    clean = np.array(data.draw(row))
    attacks = {name: np.array([data.draw(row) for _ in RADII]).T for name in ("first", "second")}
    result = evaluate_adversarial(normal, clean, RADII, attacks)
    adversarial = merits(result.clean_normals)
    assert (adversarial <= clean_merits(normal, clean) + 1e-12).all()
    in_order = adversarial[:, np.argsort(RADII)]
    assert (np.diff(in_order, axis=1) <= 1e-12).all()
    # Bounds that hold: below every score that an attack within the radius has reached.
    columns = [
        np.minimum.reduce(
            [clean, *(a[:, RADII.index(s)] for a in attacks.values() for s in RADII if s <= r)]
        )
        for r in RADII
    ]
    below = np.stack(columns, 1) - data.draw(st.sampled_from([0.0, 0.7]))
    bound = evaluate_guaranteed(normal, below, RADII, point_alpha=1e-6).clean_normals
    assert (merits(bound) <= adversarial + 1e-12).all()


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_metric_of_the_lowest_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    normal, clean = rng.normal(size=40), rng.normal(2, 1, size=31)
    attacks = {name: clean - rng.normal(0.5, 1, size=31) for name in "abc"}
    result = evaluate_adversarial(torch.tensor(normal), clean, 0.1, attacks)
    lowest = np.minimum.reduce([clean, *attacks.values()])
    exact = evaluate(normal, lowest)
    np.testing.assert_allclose(np.stack([*result.clean_normals])[:, 0], [*exact][:5])
    assert result.moved_normals is None
    assert (result.count_normal, result.count_anomalous) == (40, 31)
    assert (merits(result.clean_normals) < clean_merits(normal, clean)).all()


def test_attacked_normal_inputs_count_with_their_highest_scores() -> None:
    result = evaluate_adversarial(
        [0.0, 1.0], [2.0, 3.0], [0.1, 0.2],
        {"apgd": [[2.0, 0.5], [3.0, 3.0]]},
        attacked_normal={"apgd": [[2.5, 0.0], [0.0, 0.0]]},
    )  # fmt: skip
    assert result.clean_normals.auroc.tolist() == [1.0, 0.75]
    assert result.moved_normals is not None
    # At 0.1: normal 2.5 and 1 against 2 and 3; at 0.2 still 2.5 and 1, against 0.5 and 3.
    assert result.moved_normals.auroc.tolist() == [0.75, 0.5]


def test_bad_input() -> None:
    for attacked, message in (
        ({}, "at least one attack"),
        ([[1.0]], "map"),
        ({"pgd": [0.1]}, r"\[2, 1\], got \[1, 1\]"),
        ({"pgd": [0.1, math.nan]}, "NaN"),
        ({"pgd": [[0.1, 0.2], [0.1, 0.2]]}, r"\[N, 1\]"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_adversarial([0.0], [1.0, 2.0], 0.1, attacked)
    with pytest.raises(InputError, match="radius"):
        evaluate_adversarial([0.0], [1.0], -0.1, {"pgd": [1.0]})
    with pytest.raises(InputError, match="scores_anomalous"):
        evaluate_adversarial([0.0], [], 0.1, {"pgd": []})
