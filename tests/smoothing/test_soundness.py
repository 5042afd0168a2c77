import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri
from scipy.stats import binom
from torch import Tensor, nn

from gradood import Smoothing, certify_class, certify_decision, certify_mean, certify_quantile
from gradood.smoothing.bounds import mean

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
checks: ModuleType = importlib.import_module("soundness_checks")
mutants: ModuleType = importlib.import_module("soundness_mutants")
sys.path.remove(str(BENCHMARKS))

CHECKS = {
    "class": (checks.check_classes, 2000),
    "decision": (checks.check_decisions, 2000),
    "data set": (checks.check_data_sets, 300),
    "quantile": (checks.check_quantiles, 500),
    "sequential": (checks.check_sequential, 200),
    "mean": (lambda rng, n, times: checks.check_means(rng, n, times, [mean.default]), 40),
}
#: Repetitions that show a mistake for certain; the campaign has as many for each.
REPETITIONS = {
    "class": 2000,
    "quantile": 500,
    "decision": 2000,
    "sequential": 2000,
    "mean": 400,
    "data set": 100,
}
SUBTLE = {"mean: DKW with a quarter of the logarithm": 2000, "mean: the best bet for free": 600}
SLOW = "sequential: alpha not split"


@pytest.mark.parametrize("name", CHECKS)
def test_certificates_are_false_no_more_often_than_alpha(name: str) -> None:
    check, repetitions = CHECKS[name]
    cells = list(check(np.random.default_rng(5), 100, repetitions))
    assert cells and not checks.found(cells)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == SLOW else ()) for n in mutants.MUTANTS]
)
def test_a_broken_certificate_is_found(name: str) -> None:
    kind = name.split(":")[0]
    repetitions = SUBTLE.get(name, REPETITIONS[kind])
    n = 1000 if name.endswith("alpha not split") else 100
    cells = list(mutants.MUTANTS[name](np.random.default_rng(6), n, repetitions))
    assert checks.found(cells)


# The certificates themselves, with their noise, on linear scores: every input is a repetition.
SIGMA, ALPHA = 0.25, 0.05
DIRECTION = torch.tensor([0.6, -0.8])


def smoothing(n: int) -> Smoothing:
    return Smoothing(sigma=SIGMA, n=n, alpha=ALPHA, seed=11, progress=False)


def inputs(margin: float, count: int) -> Tensor:
    """Points at a signed distance ``margin`` from the line <direction, x> = 0."""
    along = torch.linspace(-1, 1, count)[:, None] * torch.tensor([0.8, 0.6])
    return along + margin * DIRECTION


def distance(x: Tensor) -> Tensor:
    return x @ DIRECTION


def too_often(wrong: Tensor) -> bool:
    return bool(binom.sf(int(wrong.sum()) - 1, len(wrong), ALPHA) < 1e-5)


class Halves(nn.Module):
    """Class 1 above the line, class 0 below."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([-distance(x), distance(x)], 1)


#: Samples and inputs.
SIZES = [(100, 200), *(pytest.param(n, 2000, marks=pytest.mark.slow) for n in (100, 1000))]


@pytest.mark.parametrize(("n", "count"), SIZES)
@pytest.mark.parametrize("radius", [None, 0.1])
def test_certified_radii_of_a_linear_classifier(n: int, count: int, radius: float | None) -> None:
    # The smoothed classifier changes at the line. With a radius, at the limit of what is true.
    margin = 0.02 if radius is None else radius - 1e-4
    result = certify_class(Halves(), inputs(margin, count), settings=smoothing(n), radius=radius)
    reach = torch.where(result.label == 1, margin, 0.0)
    assert not too_often(result.radius > reach + 1e-6)
    assert not too_often(result.lower > ndtr(margin / SIGMA))


@pytest.mark.parametrize(("n", "count"), SIZES)
@pytest.mark.parametrize("radius", [None, 0.0, 0.25])
def test_certified_decisions_of_a_linear_score(n: int, count: int, radius: float | None) -> None:
    margin = 0.0 if radius is None else radius - 1e-4
    options = {"threshold": 0.0, "radius": radius}
    result = certify_decision(distance, inputs(margin, count), settings=smoothing(n), **options)
    reach = torch.where(result.decision > 0, margin, -margin)
    assert not too_often((result.decision != 0) & (result.radius > reach + 1e-6))


@pytest.mark.parametrize(("n", "count"), SIZES)
@pytest.mark.parametrize("q", [0.1, 0.5])
def test_certified_quantiles_of_a_linear_score_with_infinite_values(
    n: int, count: int, q: float
) -> None:
    def score(x: Tensor) -> Tensor:
        s = distance(x)
        s = torch.where(s > 0.6, math.inf, s)
        return torch.where(s < -0.6, -math.inf, s)

    radii = [0.0, 0.25]
    result = certify_quantile(score, inputs(0.1, count), settings=smoothing(n), radius=radii, q=q)
    for column, radius in enumerate(radii):
        above, below = (0.1 + SIGMA * ndtri(q) + move for move in (radius, -radius))
        above, below = (math.copysign(math.inf, v) if abs(v) > 0.6 else v for v in (above, below))
        wrong = (result.upper[:, column] < above - 1e-6) | (result.lower[:, column] > below + 1e-6)
        assert not too_often(wrong)


@pytest.mark.parametrize(("n", "count"), SIZES)
def test_certified_means_of_a_probit_score(n: int, count: int) -> None:
    def score(x: Tensor) -> Tensor:
        return torch.special.ndtr(distance(x) * 8 - 1)

    radii = [0.0, 0.25]
    result = certify_mean(score, inputs(0.1, count), settings=smoothing(n), radius=radii)
    for column, radius in enumerate(radii):
        above, below = (
            ndtr((8 * (0.1 + move) - 1) / math.hypot(1, 8 * SIGMA)) for move in (radius, -radius)
        )
        wrong = (result.upper[:, column] < above - 1e-6) | (result.lower[:, column] > below + 1e-6)
        assert not too_often(wrong)
