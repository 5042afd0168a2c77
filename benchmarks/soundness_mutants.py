"""Certificates broken on purpose, one mistake each; the checks must find every one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import soundness_checks as checks
from scipy.special import ndtri
from soundness_checks import SIGMA, Cell, Claims, Floats, Generator

from gradood.evaluation import evaluate_guaranteed
from gradood.smoothing.bounds import band, binomial, mean, quantile, sequential
from gradood.smoothing.bounds.histogram import Sample

Run = Callable[[Generator, int, int], Iterator[Cell]]


def _classes(certify: Callable[..., Claims], longer: int = 1) -> Run:
    return lambda rng, n, times: checks.check_classes(rng, n, longer * times, certify)


def _means(bound: mean.Bound, *scores: str) -> Run:
    return lambda rng, n, times: checks.check_means(rng, n, times, [bound], scores)


def _quantiles(**broken: checks.Bound) -> Run:
    return lambda rng, n, times: checks.check_quantiles(rng, n, times, **broken)


def _plug_in_runner_up(pilot: Floats, counts: Floats, sigma: float, alpha: float) -> Claims:
    good = checks.class_certificate(pilot, counts, sigma, alpha)
    others = counts.copy()
    others[np.arange(len(counts)), good.label] = -1
    upper = np.minimum(1 - good.lower, others.max(1) / counts.sum(1))
    radius = np.maximum(sigma / 2 * (ndtri(good.lower) - ndtri(upper)), 0)
    return good._replace(upper=upper, radius=radius)


def _unsplit_decision(successes: Floats, n: int, sigma: float, alpha: float) -> Floats:
    return checks.decision_radius(successes, n, sigma, 2 * alpha)


def _peeking(a: Floats, n: Floats, p0: Floats, alpha: float, n_max: int) -> Floats:
    enough = binomial.lower(a, n, alpha) > p0
    return np.where(enough, sequential.CERTIFY, np.where(n >= n_max, sequential.FUTILE, 0))


def _unsplit_sequence(a: Floats, n: Floats, p0: Floats, alpha: float, n_max: int) -> Floats:
    return sequential.decide(a, n, p0, 2 * alpha, n_max=n_max)


def _sample_mean(sample: Sample, c: Floats, alpha: float) -> Floats:
    return binomial.shift(sample.mean, c)


def _unshifted(sample: Sample, c: Floats, alpha: float) -> Floats:
    return mean.kl(sample, 0 * c, alpha)


def _without_sigma(sample: Sample, c: Floats, alpha: float) -> Floats:
    return mean.kl(sample, c * SIGMA, alpha)


def _lipschitz(sample: Sample, c: Floats, alpha: float) -> Floats:
    """The smoothed score has the Lipschitz constant sqrt(2 / pi) / sigma at most."""
    return sample.mean + np.sqrt(2 / np.pi) * c * SIGMA


def _wrong_dkw(sample: Sample, c: Floats, alpha: float) -> Floats:
    return band.dkw(sample, c, min(0.5, alpha**0.25))


def _one_value_lower(sample: Sample, c: Floats, alpha: float) -> Floats:
    values = np.append(0, sample.values[:-1])
    return mean.kl(sample._replace(values=values), c, alpha)


def _nan_is_zero(sample: Sample, c: Floats, alpha: float) -> Floats:
    values = np.where(sample.values == 1, 0, sample.values)
    order = values.argsort()
    return mean.kl(sample._replace(values=values[order], counts=sample.counts[order]), c, alpha)


def _best_bet(sample: Sample, c: Floats, alpha: float) -> Floats:
    """The best of many bets, as if it had been chosen beforehand, and placed on a tenth."""
    return mean.betting(sample, c, min(0.99, alpha * 24))


def _no_composition(upper: Floats, lower: Floats, radius: float, **options: object) -> object:
    options = options | {"alpha": 0.999, "composition": "bonferroni", "point_alpha": 1e-9}
    return evaluate_guaranteed(upper, lower, radius, **options)


def _dropped(scores: Floats, rank: Floats) -> Floats:
    return quantile.upper(np.where(np.isnan(scores), -np.inf, scores), rank)


def _repeated(scores: Floats, rank: Floats) -> Floats:
    """Every second score is its neighbour's copy, as antithetic pairs of an even score are."""
    paired = np.repeat(scores[:, ::2], 2, axis=1)[:, : scores.shape[1]]
    return quantile.upper(paired, rank)


MUTANTS: dict[str, Run] = {
    "class: alpha not split": _classes(
        lambda p, k, s, alpha: checks.class_certificate(p, k, s, 2 * alpha), longer=10
    ),
    "class: selection on the samples of the estimate": _classes(
        lambda p, k, s, alpha: checks.class_certificate(k, k, s, alpha)
    ),
    "class: radius without sigma": _classes(
        lambda p, k, s, alpha: checks.class_certificate(p, k, 1.0, alpha)
    ),
    "class: runner-up without a bound": _classes(_plug_in_runner_up),
    "quantile: upper rank one less": _quantiles(
        upper_rank=lambda *a: np.maximum(quantile.upper_rank(*a) - 1, 1)
    ),
    "quantile: lower rank one more": _quantiles(lower_rank=lambda *a: quantile.lower_rank(*a) + 1),
    "quantile: radius without sigma": _quantiles(
        upper_rank=lambda n, p, c, alpha: quantile.upper_rank(n, p, c * SIGMA, alpha)
    ),
    "quantile: NaN dropped": _quantiles(value=_dropped),
    "quantile: antithetic pairs": _quantiles(value=_repeated),
    "decision: alpha not split": lambda rng, n, times: checks.check_decisions(
        rng, n, times, _unsplit_decision
    ),
    "sequential: Clopper-Pearson at every look": lambda rng, n, times: checks.check_sequential(
        rng, n, times, _peeking
    ),
    "sequential: alpha not split": lambda rng, n, times: checks.check_sequential(
        rng, n, 3 * times, _unsplit_sequence
    ),
    "mean: the sample's": _means(_sample_mean, "half-space .3"),
    "mean: no shift": _means(_unshifted, "large variance"),
    "mean: radius without sigma": _means(_without_sigma, "large variance"),
    "mean: a Lipschitz constant without sigma": _means(_lipschitz, "large variance"),
    "mean: DKW with a quarter of the logarithm": _means(_wrong_dkw, "half-space .3"),
    "mean: rounded down": _means(_one_value_lower, "atoms"),
    "mean: NaN is 0": _means(_nan_is_zero, "NaN in the tail"),
    "mean: the best bet for free": _means(_best_bet, "half-space .3", "atoms"),
    "data set: alpha not composed": lambda rng, n, times: checks.check_data_sets(
        rng, n, times, _no_composition
    ),
}
