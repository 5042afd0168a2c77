import math

import pytest
import torch

from gradood.detectors.threshold import conservative_threshold
from gradood.errors import InputError


@pytest.mark.parametrize(
    ("n", "fpr", "rank"),
    [(19, 0.05, 19), (20, 0.05, 20), (39, 0.05, 38), (99, 0.07, 93), (9, 0.5, 5)],
)
def test_rank_is_the_ceiling(n, fpr, rank):
    assert rank == math.ceil(round((n + 1) * (1 - fpr), 9))
    scores = torch.arange(1.0, n + 1)[torch.randperm(n)]
    assert conservative_threshold(scores, fpr) == rank


def test_false_positive_rate_is_at_most_the_promise_on_average():
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(2000):
        scores = torch.rand(30, generator=generator)
        rates.append(1 - conservative_threshold(scores, 0.1))  # uniform: exceeded with 1 - t
    mean = sum(rates) / len(rates)
    # Exactly 3 / 31 of the mass lies above the 28th of 30 scores.
    assert mean == pytest.approx(3 / 31, abs=3 * 0.053 / math.sqrt(2000))


def test_ties_are_not_above_the_threshold():
    scores = torch.tensor([0.0] * 10 + [1.0] * 30)
    assert conservative_threshold(scores, 0.1) == 1.0


def test_too_few_scores_say_how_many_are_needed():
    with pytest.raises(InputError, match="18 normal inputs are too few.*19"):
        conservative_threshold(torch.rand(18), 0.05)
    with pytest.raises(InputError, match="too few"):
        conservative_threshold(torch.empty(0), 0.5)


@pytest.mark.parametrize("fpr", [0, 1, -0.1, 1.5, math.nan])
def test_rate_outside_the_open_interval(fpr):
    with pytest.raises(InputError, match="fpr"):
        conservative_threshold(torch.rand(100), fpr)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_threshold_is_never_infinite(bad):
    scores = torch.arange(100.0)
    scores[:3] = bad
    assert math.isfinite(conservative_threshold(scores, 0.05))
    scores[:10] = bad
    with pytest.raises(InputError, match="10 of 100"):
        conservative_threshold(scores, 0.05)
