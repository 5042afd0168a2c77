"""Further claims against known truths: anytime bounds, p-values, false discoveries, spread, floats.

Like ``soundness_checks``, whose ``CHECKS`` they join in ``soundness.py``; ``MUTANTS`` are the same
claims with one mistake each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from soundness_checks import ALPHA, MEANS, SHIFTS, Bound, Cell, Floats, Generator, columns

from gradood import ops
from gradood.detectors.conformal import conformal_p_values
from gradood.evaluation import bound_false_discoveries, control_fdr
from gradood.smoothing import Smoothing
from gradood.smoothing.bounds import binomial, mean, quantile, sequential
from gradood.smoothing.noise import NoisyInputs

Check = Callable[[Generator, int, int], Iterator[Cell]]


def _looks(n: int, count: int) -> np.ndarray:
    return np.unique(np.geomspace(2, n, count).round().astype(int))


def _counts(rng: Generator, p: float, looks: np.ndarray, times: int) -> np.ndarray:
    """Successes of one growing sample at each look, ``[times, looks]``."""
    return rng.binomial(np.diff(looks, prepend=0), p, (times, len(looks))).cumsum(1)


def check_anytime(
    rng: Generator, n: int, times: int, lower: Bound = sequential.lower
) -> Iterator[Cell]:
    """A bound of a probability fails if it is wrong at any of 40 looks."""
    looks = _looks(n, 40)
    for c in SHIFTS:
        for p in sorted({float(ndtr(c)), float(ndtr(-c))}):
            bound = lower(_counts(rng, p, looks, times), looks, ALPHA)
            yield Cell("anytime probability", f"p = {p:.3f}", n, c, _any(bound > p), times)


def check_anytime_quantiles(
    rng: Generator,
    n: int,
    times: int,
    upper: Bound = quantile.anytime_upper_rank,
    lower: Bound = quantile.anytime_lower_rank,
) -> Iterator[Cell]:
    """X_(k) is on the wrong side exactly if k scores or more, or fewer, are below the quantile."""
    looks = _looks(n, 40)
    for c in SHIFTS:
        p = float(ndtr(c))
        below = _counts(rng, p, looks, times)
        failed = _any(below >= upper(looks, p, ALPHA))
        yield Cell("anytime quantile upper", "continuous", n, c, failed, times)
        failed = _any(below < lower(looks, p, ALPHA))
        yield Cell("anytime quantile lower", "continuous", n, c, failed, times)


def check_anytime_means(
    rng: Generator, n: int, times: int, bound: mean.Bound = mean.betting
) -> Iterator[Cell]:
    """Twelve looks at one growing sample."""
    looks = _looks(n, 12)
    for name in ("half-space .3", "atoms", "NaN in the tail"):
        known, wrong = MEANS[name], 0
        truth = known.mean(0.0) - 1e-6
        for _ in range(times):
            scores = known.draw(rng, (n,))
            for look in looks:
                counts, edges = columns(scores[:look])
                if mean.upper(counts, edges, 0.0, ALPHA, bound) < truth:
                    wrong += 1
                    break
        yield Cell("anytime mean upper", name, n, 0.0, wrong, times)


def check_p_values(
    rng: Generator, n: int, times: int, p_values: Callable[..., torch.Tensor] = conformal_p_values
) -> Iterator[Cell]:
    """P(p <= alpha) for normal inputs, n the size of the calibration set, with and without ties."""
    size, times = min(n, 1000), 10 * times  # the claim is tight: what is a little wrong must show
    for name, digits in (("continuous", 9), ("ties", 0), ("NaN", 9)):
        failed = 0
        for _ in range(times):
            scores = rng.standard_normal(size + 1).round(digits)
            if name == "NaN":
                scores[rng.random(size + 1) < 0.02] = np.nan
            one = torch.from_numpy(scores)
            failed += int(p_values(one[:size], one[size:]) <= ALPHA)
        yield Cell("conformal p-value", name, size, np.nan, failed, times)


def _batch(rng: Generator, size: int, normal: int, other: int) -> Floats:
    """Conformal p-values of normal inputs, and of others 3 deviations away."""
    known = rng.standard_normal(size)
    scores = np.append(rng.standard_normal(normal), rng.standard_normal(other) + 3)
    return conformal_p_values(torch.from_numpy(known), torch.from_numpy(scores)).numpy()


def check_fdr(
    rng: Generator, n: int, times: int, control: Callable[..., np.ndarray] = control_fdr
) -> Iterator[Cell]:
    """The share of false calls, as a coin of that probability, so that it can be counted."""
    size = min(n, 1000)
    for method in ("bh", "storey", "by"):
        for normal, other in ((100, 0), (90, 10), (50, 50)):
            failed = 0
            for _ in range(times):
                called = control(_batch(rng, size, normal, other), ALPHA, method)
                failed += rng.random() < called[:normal].sum() / max(called.sum(), 1)
            name = f"{normal} normal, {other} not"
            yield Cell(f"false discovery rate ({method})", name, size, np.nan, int(failed), times)


def check_discoveries(
    rng: Generator, n: int, times: int, bound: Callable[..., np.ndarray] = bound_false_discoveries
) -> Iterator[Cell]:
    """A bound of false discoveries fails if it is too small at any threshold."""
    size = min(n, 1000)
    for normal, other in ((100, 0), (50, 50)):
        failed = 0
        for _ in range(times):
            p = _batch(rng, size, normal, other)
            true = np.searchsorted(np.sort(p[:normal]), p, side="right")
            failed += bool((true > bound(p, size, ALPHA)).any())
        name = f"{normal} normal, {other} not"
        yield Cell("false discoveries, all thresholds", name, size, np.nan, failed, times)


def _certified_p(upper: Floats, lower: Floats, alpha: float) -> Floats:
    """``evaluation.worst_case_p_values`` of many calibration sets at once."""
    return (1 + (upper >= lower[:, None]).sum(1)) / (upper.shape[1] + 1) + alpha


def check_worst_case(rng: Generator, n: int, times: int, shift: float = 1.0) -> Iterator[Cell]:
    """The score is a line; a normal input, moved by c sigma upwards, must keep its p-value."""
    alpha, size, times = 0.01, 99, 20 * times
    for c in SHIFTS[:3]:
        k_up = int(quantile.upper_rank(n, 0.5, 0.0, alpha / 2))
        k_low = int(quantile.lower_rank(n, 0.5, shift * c, alpha / 2))
        place = 0.2 * rng.standard_normal((times, size + 1))

        def drawn(k: int, shape: tuple[int, ...]) -> Floats:
            return ndtri(rng.beta(k, n - k + 1, shape)) if k else np.full(shape, -np.inf)

        upper = place[:, :-1] + drawn(k_up, (times, size))
        lower = place[:, -1] + c + drawn(k_low, (times,))
        failed = int((_certified_p(upper, lower, alpha) <= ALPHA).sum())
        yield Cell("worst-case p-value", "line", n, c, failed, times)


def check_spread(rng: Generator, n: int, times: int, share: float = 4.0) -> Iterator[Cell]:
    """Both bounds of the interquartile range of a line at the input itself."""
    truth, times = float(2 * ndtri(0.75)), 20 * times
    ranks = [
        (int(quantile.lower_rank(n, q, 0.0, ALPHA / share)),
         int(quantile.upper_rank(n, q, 0.0, ALPHA / share)))
        for q in (0.25, 0.75)
    ]  # fmt: skip
    failed = 0
    for _ in range(times):
        scores = np.sort(rng.standard_normal(n))
        (low1, up1), (low3, up3) = ((scores[a - 1], scores[b - 1]) for a, b in ranks)
        failed += not (low3 - up1 <= truth <= up3 - low1)
    yield Cell("spread", "line", n, 0.0, failed, times)


def _grid_copies(x: torch.Tensor, settings: Smoothing, samples: int) -> torch.Tensor:
    rows = torch.zeros(samples, dtype=torch.long)
    return NoisyInputs(x, None, settings).copies(rows, torch.arange(samples), 0)


def _float32_copies(x: torch.Tensor, settings: Smoothing, samples: int) -> torch.Tensor:
    rows, key = torch.zeros(samples, dtype=torch.long), torch.tensor([settings.seed, 0])
    options = (settings.sigma, None, None, None, None, torch.float32, False)
    return ops.noisy_batch(x, rows, rows, torch.arange(samples), key, *options)


def check_floats(
    rng: Generator, n: int, times: int, copies: Callable[..., torch.Tensor] = _grid_copies
) -> Iterator[Cell]:
    """Certificates from the noise that runs: of a half-space, and of a model that reads last bits.

    The second has class 0 exactly where two numbers are multiples of 2^-25 (Voracek and Hein 2022):
    at (1/2, 1/2) and at 0 alike if the noise shows no trace of the input.
    """
    size, sigma, times = min(n, 1000), 0.25, 10 * times
    wrong = traced = 0
    for _ in range(times):
        settings = Smoothing(sigma=sigma, seed=int(rng.integers(2**62)))
        x = torch.full((1, 2), 0.5)
        moved = copies(x, settings, size)
        above = int((moved[:, 0] > 0.5 - sigma / 2).sum())
        wrong += float(binomial.lower(above, size, ALPHA)) > ndtr(0.5) + 1e-3  # of the grid's step
        votes = [
            int((part.double() * 2**25 % 1 == 0).all(1).sum())
            for part in (moved, copies(torch.zeros(1, 2), settings, size))
        ]
        radius = sigma * ndtri(float(binomial.lower(votes[0], size, ALPHA)))
        far = radius > 0.5 * np.sqrt(2) or votes[0] > size / 2
        traced += bool(far and votes[1] < size / 2)
    yield Cell("floating point", "half-space", size, 0.5, int(wrong), times)
    yield Cell("floating point", "last bits", size, np.nan, traced, times)


def _any(wrong: np.ndarray) -> int:
    return int(wrong.any(1).sum())


CHECKS: dict[str, Check] = {
    "anytime mean": check_anytime_means,
    "anytime": check_anytime,
    "anytime quantile": check_anytime_quantiles,
    "p-value": check_p_values,
    "false discovery rate": check_fdr,
    "false discoveries": check_discoveries,
    "worst-case p-value": check_worst_case,
    "spread": check_spread,
    "floating point": check_floats,
}


def _half_as_certain(a: object, n: object, alpha: float) -> Floats:
    return sequential.lower(a, n, min(0.45, 4 * alpha))


def _above_only(known: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Ties are in the score's favour."""
    return (1 + (known > scores).sum()).double()[None] / (len(known) + 1)


def _without_one(known: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return (known >= scores).sum().double()[None] / len(known)


def _pointwise(p: Floats, size: int, delta: float) -> np.ndarray:
    """Each threshold's own quantile, without the union."""
    from scipy.stats import betabinom

    k = np.round(p * (size + 1))
    return betabinom.ppf(1 - delta, len(p), k, size + 1 - k + 1e-9)


MUTANTS: dict[str, Check] = {
    "anytime: Clopper-Pearson at every look": partial(check_anytime, lower=binomial.lower),
    "anytime: four times alpha": partial(check_anytime, lower=_half_as_certain),
    "anytime quantile: fixed ranks at every look": partial(
        check_anytime_quantiles,
        upper=lambda n, p, alpha: quantile.upper_rank(n, p, 0.0, alpha),
        lower=lambda n, p, alpha: quantile.lower_rank(n, p, 0.0, alpha),
    ),
    "anytime mean: the sample's": partial(
        check_anytime_means, bound=lambda sample, c, alpha: np.full(np.shape(c), sample.mean)
    ),
    "p-value: ties in the score's favour": partial(check_p_values, p_values=_above_only),
    "p-value: one less": partial(check_p_values, p_values=_without_one),
    "false discovery rate: no correction": partial(
        check_fdr, control=lambda p, level, method: p <= level
    ),
    "false discoveries: one threshold at a time": partial(check_discoveries, bound=_pointwise),
    "worst-case p-value: no shift": partial(check_worst_case, shift=0.0),
    "spread: the sample's": partial(check_spread, share=0.06),
    "floating point: float32 sums": partial(check_floats, copies=_float32_copies),
}
