"""Tests that the rate of alarms has risen, against the formula, truths and Ville's inequality."""

import csv
import json
import math

import numpy as np
import pytest

from gradood.detectors.threshold import Calibration, conservative_threshold
from gradood.errors import InputError
from gradood.evaluation.watching import (
    _FACTORS,
    AlarmRateTest,
    calibrated_rate,
    rate_interval,
)


def by_definition(alarms, rate):
    """M_t after every alarm, as the docstring says: every beginning and alternative by itself."""
    rates = [f * rate for f in _FACTORS if f * rate < (1 + rate) / 2] + [(1 + rate) / 2]
    weights = [1 / (1 + math.log(j)) - 1 / (1 + math.log(j + 1)) for j in range(1, len(alarms) + 1)]
    found = []
    for t in range(1, len(alarms) + 1):
        total = 1 - sum(weights[:t])
        for q in rates:
            for j in range(t):
                gains = (q / rate if a else (1 - q) / (1 - rate) for a in alarms[j:t])
                total += weights[j] * math.prod(gains) / len(rates)
        found.append(total)
    return found


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.4, 0.9])
def test_the_capital_is_that_of_the_formula(rate):
    alarms = np.random.default_rng(0).random(60) < 1.5 * rate
    test = AlarmRateTest(rate, alpha=0.05)
    for alarm, expected in zip(alarms, by_definition(alarms.tolist(), rate), strict=True):
        test.update(alarm)
        assert float(test.capital) == pytest.approx(expected, rel=1e-9)
    assert test.seen == 60 and int(test.alarms) == alarms.sum()


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_a_fair_game(rate):
    """The mean capital stays 1 while the rate is the normal one, and falls below while smaller."""
    for factor in (1.0, 0.5):
        expected = []
        test = AlarmRateTest(rate)
        for _ in range(5):  # one step from any capital: the expectation over the next alarm
            before = test._capital.copy()
            capital, seen = float(test.capital), test.seen
            next_ones = []
            for alarm in (True, False):
                test._capital, test.seen = before.copy(), seen
                test.update(alarm)
                next_ones.append(float(test.capital))
            chance = factor * rate
            expected.append(chance * next_ones[0] + (1 - chance) * next_ones[1] - capital)
        if factor == 1:
            assert expected == pytest.approx([0] * 5, abs=1e-12)
        else:
            assert max(expected) < 0


STREAMS = {
    "constant": lambda t, last, rate: np.full(last.shape, rate),
    "below, then at it": lambda t, last, rate: np.full(last.shape, rate * (t > 500)),
    "in clumps": lambda t, last, rate: np.where(last, 0.0, rate),
    "bait": lambda t, last, rate: np.full(last.shape, rate * (t % 100 < 50)),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("rate, alpha", [(0.05, 0.05), (0.3, 0.05)])
def test_false_alarms_are_as_rare_as_promised(stream, rate, alpha):
    random, streams = np.random.default_rng(7), 2000
    test, last = AlarmRateTest(rate, alpha, (streams,)), np.zeros(streams, bool)
    for t in range(1500):
        last = random.random(streams) < STREAMS[stream](t, last, rate)
        test.update(last)
    assert test.risen.sum() <= alpha * streams + 3 * math.sqrt(alpha * (1 - alpha) * streams)


@pytest.mark.parametrize("factor, most", [(2, 1000), (4, 200)])
def test_a_rise_is_found_soon(factor, most):
    random = np.random.default_rng(1)
    test = AlarmRateTest(0.05, 0.01, (100,))
    for t in range(2000 + most):
        test.update(random.random(100) < 0.05 * (factor if t >= 2000 else 1))
    assert (test.risen_at > 2000).mean() > 0.9


def test_a_state_goes_on_where_it_stopped():
    alarms = np.random.default_rng(3).random(400) < 0.1
    whole, part = AlarmRateTest(0.05), AlarmRateTest(0.05)
    for place, alarm in enumerate(alarms):
        whole.update(alarm)
        part.update(alarm)
        if place % 37 == 0:
            part = AlarmRateTest.restored(json.loads(json.dumps(part.state())))
    assert part.state() == whole.state()
    for broken in ({}, {**part.state(), "capital": [1]}, {**part.state(), "seen": "x"}, []):
        with pytest.raises(InputError, match="no state"):
            AlarmRateTest.restored(broken)


def test_certain_alarms_do_not_overflow():
    test = AlarmRateTest(0.001)
    for _ in range(5000):
        test.update(True)
    assert np.isfinite(test.capital) and int(test.risen_at) < 10


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.99])
def test_intervals_hold_at_all_times(rate):
    random, missed = np.random.default_rng(5), 0
    for _ in range(150):
        alarms = np.cumsum(random.random(1000) < rate)
        limits = [rate_interval(int(alarms[n - 1]), n, 0.1) for n in range(1, 1001, 25)]
        missed += any(not low <= rate <= high for low, high in limits)
        assert all(low <= alarms[n - 1] / n <= high
                   for n, (low, high) in zip(range(1, 1001, 25), limits, strict=True))  # fmt: skip
    assert missed <= 15 + 3 * math.sqrt(13.5)
    assert rate_interval(0, 0) == (0, 1)
    low, high = rate_interval(50, 1000)
    assert 0.02 < low < 0.05 < high < 0.09


@pytest.mark.parametrize("inputs, fpr", [(50, 0.05), (400, 0.05), (99, 0.2)])
def test_calibration_keeps_the_rate_that_is_said(inputs, fpr):
    import torch

    random, above = np.random.default_rng(2), 0
    rate = calibrated_rate(Calibration(fpr, inputs), alpha=0.1)
    for _ in range(2000):
        scores = torch.from_numpy(random.random(inputs))
        above += 1 - conservative_threshold(scores, fpr) > rate  # of uniform scores
    assert above / 2000 == pytest.approx(0.1, abs=0.025)


@pytest.mark.parametrize("rate, alpha", [(0, 0.1), (1, 0.1), (0.1, 0), (0.1, 2), (math.nan, 0.1)])
def test_rates_that_mean_nothing(rate, alpha):
    with pytest.raises(InputError):
        AlarmRateTest(rate, alpha)


def test_the_page_of_the_benchmark_is_of_its_rows():
    from benchmarks.watch import RESULTS, page

    with open(RESULTS, encoding="utf-8") as file:
        assert page(list(csv.DictReader(file))) == RESULTS.with_suffix(".md").read_text("utf-8")
