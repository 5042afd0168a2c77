"""Counts are exact: ties, infinities, NaN, rows in any order."""

import pytest
import torch

from benchmarks.kernel_calls import DEVICE
from gradood.errors import InputError
from gradood.ops import triton_backend

INPUTS = 4


def count(values, rows, mode, thresholds=None):
    there = [a if a is None else a.to(DEVICE) for a in (values, rows, thresholds)]
    assert triton_backend.reject("vote_count", there[0], there[1], mode, there[2], INPUTS) is None
    counts = triton_backend.vote_count(there[0], there[1], mode, there[2], INPUTS).cpu()
    assert counts.dtype == torch.int64
    return counts


@pytest.fixture(params=["alone", "sorted", "mixed", "last"])
def rows(request):
    mixed = torch.randint(0, INPUTS, (153,), generator=torch.Generator().manual_seed(1))
    chosen = {"alone": torch.full_like(mixed, 2), "sorted": mixed.sort()[0], "mixed": mixed}
    return chosen.get(request.param, torch.full_like(mixed, INPUTS - 1))


def tally(rows, columns, width):
    counts = torch.zeros(INPUTS, width, dtype=torch.int64)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        counts[row, column] += 1
    return counts


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(1, torch.float32), (13, torch.bfloat16), (13, torch.float16), (300, torch.float32)],
)
def test_argmax(rows, classes, dtype):
    logits = torch.randn(153, classes, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[3] = logits[3, 0]  # all tied: the first wins
    logits[4, classes // 2 :] = 9
    logits[7, classes - 1] = torch.nan
    logits[9] = -torch.inf
    logits[10, 0] = torch.inf
    winners = [
        classes if row.isnan().any() else row.tolist().index(row.max()) for row in logits.float()
    ]
    wanted = tally(rows, torch.tensor(winners), classes + 1)
    assert torch.equal(count(logits, rows, "argmax"), wanted)
    gaps = torch.full((153, 2 * classes + 3), torch.nan, dtype=dtype)
    gaps[:, 1 : 2 * classes : 2] = logits
    assert torch.equal(count(gaps[:, 1 : 2 * classes : 2], rows, "argmax"), wanted)


@pytest.fixture
def scores():
    values = torch.randn(153, generator=torch.Generator().manual_seed(0))
    values[5], values[6], values[8] = torch.nan, torch.inf, -torch.inf
    return values


@pytest.mark.parametrize("thresholds", [1, 70])
def test_above(rows, scores, thresholds):
    edges = torch.randn(thresholds, generator=torch.Generator().manual_seed(2))
    scores[20] = edges[0]  # not above
    wanted = torch.zeros(INPUTS, thresholds + 1, dtype=torch.int64)
    for row, value in zip(rows.tolist(), scores, strict=True):
        wanted[row, :-1] += value > edges
        wanted[row, -1] += value.isnan()
    assert torch.equal(count(scores, rows, "above", edges), wanted)


@pytest.mark.parametrize("thresholds", [1, 70])
def test_histogram(rows, scores, thresholds):
    edges = torch.randn(thresholds, generator=torch.Generator().manual_seed(2)).sort()[0]
    scores[20], scores[21] = edges[0], edges[-1]  # the edge belongs to the column below
    columns = torch.where(scores.isnan(), thresholds + 1, torch.bucketize(scores, edges))
    wanted = tally(rows, columns, thresholds + 2)
    assert torch.equal(count(scores, rows, "histogram", edges), wanted)
    assert count(scores, rows, "histogram", edges).sum() == len(scores)


def test_precise_thresholds_are_not_rounded():
    """A float64 threshold just below a float32 value still lies below it."""
    values, rows = torch.tensor([0.1, 0.2]), torch.zeros(2, dtype=torch.int64)
    just_below = values[:1].double() - 1e-12
    assert count(values, rows, "above", just_below)[0].tolist() == [2, 0]


def test_no_values():
    none = torch.zeros(0, dtype=torch.int64)
    assert count(torch.zeros(0, 3), none, "argmax").tolist() == [[0] * 4] * INPUTS


def test_unknown_mode_and_missing_thresholds_are_errors():
    rows = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match="median.*argmax"):
        count(torch.zeros(2), rows, "median")
    with pytest.raises(InputError, match="needs thresholds"):
        count(torch.zeros(2), rows, "above")
    with pytest.raises(InputError, match="has no thresholds"):
        count(torch.zeros(2, 3), rows, "argmax", torch.zeros(3))
