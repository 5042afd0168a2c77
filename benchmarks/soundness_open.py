"""Further claims against known truths: anytime bounds, p-values, false discoveries, spread, floats.

Like ``soundness_checks``, whose ``CHECKS`` they join in ``soundness.py``; ``MUTANTS`` are the same
claims with one mistake each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from scipy.stats import betabinom
from soundness_checks import ALPHA, SHIFTS, Bound, Cell, Floats, Generator

from gradood import ops
from gradood.detectors.conformal import conformal_p_values
from gradood.evaluation import bound_false_discoveries, control_fdr
from gradood.smoothing import Smoothing
from gradood.smoothing.bounds import anytime, binomial, mean, quantile
from gradood.smoothing.noise import NoisyInputs

Check = Callable[[Generator, int, int], Iterator[Cell]]


#: Scores of few values: what they are, and with which probabilities. NaN counts as 1.
STAIRS: dict[str, tuple[list[float], list[float]]] = {
    "half-space .3": ([0.0, 1.0], [0.7, 0.3]),
    "atoms": ([0.0, 0.25, 0.26, 0.7, 1.0], [0.16, 0.42, 0.32, 0.09, 0.01]),
    "NaN in the tail": ([0.1, 0.4, np.nan], [0.5, 0.34, 0.16]),
}


def _looks(n: int, count: int) -> np.ndarray:
    return np.unique(np.geomspace(2, n, count).round().astype(int))


def _counts(rng: Generator, p: float, looks: np.ndarray, times: int) -> np.ndarray:
    """Successes of one growing sample at each look, ``[times, looks]``."""
    return rng.binomial(np.diff(looks, prepend=0), p, (times, len(looks))).cumsum(1)


def check_anytime(
    rng: Generator, n: int, times: int, lower: Bound = anytime.lower
) -> Iterator[Cell]:
    """A bound of a probability fails if it is wrong at any of 40 looks; n is the planned one."""
    looks, times = np.append(_looks(n, 40), 2 * n), 3 * times
    for c in SHIFTS:
        for p in sorted({float(ndtr(c)), float(ndtr(-c))}):
            counts, wrong = _counts(rng, p, looks, times), np.zeros(times, bool)
            for look, column in zip(looks.tolist(), counts.T, strict=True):
                values, where = np.unique(column, return_inverse=True)
                wrong |= (lower(values, look, ALPHA, n) > p)[where]
            yield Cell("anytime probability", f"p = {p:.3f}", n, c, int(wrong.sum()), times)


def check_anytime_quantiles(
    rng: Generator,
    n: int,
    times: int,
    upper: Bound = quantile.anytime_upper_rank,
    lower: Bound = quantile.anytime_lower_rank,
) -> Iterator[Cell]:
    """X_(k) is on the wrong side exactly if k scores or more, or fewer, are below the quantile."""
    looks, times = np.append(_looks(n, 40), 2 * n), 3 * times
    for c in SHIFTS:
        p = float(ndtr(c))
        below = _counts(rng, p, looks, times)
        failed = _any(below >= upper(looks, p, ALPHA, n))
        yield Cell("anytime quantile upper", "continuous", n, c, failed, times)
        failed = _any(below < lower(looks, p, ALPHA, n))
        yield Cell("anytime quantile lower", "continuous", n, c, failed, times)


def check_anytime_means(
    rng: Generator, n: int, times: int, bound: Bound = mean.always
) -> Iterator[Cell]:
    """Twelve looks at one growing sample, most of a half-space, whose counts repeat."""
    looks = _looks(n, 12)
    for name, (levels, shares) in STAIRS.items():
        runs = 17 * times if len(levels) == 2 else times // 4
        values = np.array(levels)
        truth = float(np.nan_to_num(values, nan=1.0) @ shares)
        atoms = values[~np.isnan(values)]
        edges = np.unique(np.clip([0, *atoms, *np.nextafter(atoms, -1)], 0, 1))
        column = np.searchsorted(edges, values, side="left")
        column[np.isnan(values)] = len(edges) + 1
        wrong = np.zeros(runs, bool)
        total = np.zeros((runs, len(values)), np.int64)
        for fresh in np.diff(looks, prepend=0).tolist():
            total += rng.multinomial(fresh, shares, runs)
            rows, where = np.unique(total, axis=0, return_inverse=True)
            counts = np.zeros((len(rows), len(edges) + 2), np.int64)
            np.add.at(counts.T, column, rows.T)
            found = mean.upper(counts, edges, 0.0, ALPHA, partial(bound, planned=n))
            wrong |= (found < truth - 1e-12)[where]
        yield Cell("anytime mean upper", name, n, 0.0, int(wrong.sum()), runs)


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
    times = 6 * times
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
    size, times = min(n, 1000), 9 * times
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


def _places(inputs: int, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and sample of every copy."""
    rows = torch.arange(inputs).repeat_interleave(samples)
    return rows, torch.arange(samples).repeat(inputs)


def _grid_copies(x: torch.Tensor, settings: Smoothing, samples: int) -> torch.Tensor:
    rows, place = _places(len(x), samples)
    copies = NoisyInputs(x, None, settings).copies(rows, place, 0)
    return copies.view(len(x), samples, -1)


def _float32_copies(x: torch.Tensor, settings: Smoothing, samples: int) -> torch.Tensor:
    rows, place = _places(len(x), samples)
    key = torch.tensor([settings.seed, 0])
    options = (settings.sigma, None, None, None, None, torch.float32, False)
    copies = ops.noisy_batch(x, rows, rows, place, key, *options)
    return copies.view(len(x), samples, -1)


def check_floats(
    rng: Generator, n: int, times: int, copies: Callable[..., torch.Tensor] = _grid_copies
) -> Iterator[Cell]:
    """Certificates from the noise that runs: of a half-space, and of a model that reads last bits.

    The second has class 0 exactly where two numbers are multiples of 2^-25 (Voracek and Hein 2022):
    at (1/2, 1/2) and at 0 alike if the noise shows no trace of the input.
    """
    size, sigma, times = min(n, 1000), 0.25, 10 * times
    wrong = traced = 0
    for start in range(0, times, 200):
        inputs = min(200, times - start)
        settings = Smoothing(sigma=sigma, seed=int(rng.integers(2**62)))
        moved = copies(torch.full((inputs, 2), 0.5), settings, size)
        above = (moved[..., 0] > 0.5 - sigma / 2).sum(1).numpy()
        wrong += int((binomial.lower(above, size, ALPHA) > ndtr(0.5) + 1e-3).sum())  # grid's step
        votes = [
            (part.double() * 2**25 % 1 == 0).all(2).sum(1).numpy()
            for part in (moved, copies(torch.zeros(inputs, 2), settings, size))
        ]
        radius = sigma * ndtri(binomial.lower(votes[0], size, ALPHA))
        far = (radius > 0.5 * np.sqrt(2)) | (votes[0] > size / 2)
        traced += int((far & (votes[1] < size / 2)).sum())
    yield Cell("floating point", "half-space", size, 0.5, wrong, times)
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


def _half_as_certain(a: object, n: object, alpha: float, planned: int) -> Floats:
    return anytime.lower(a, n, 4 * alpha, planned)


def _planned_everywhere(a: object, n: object, alpha: float, planned: int) -> Floats:
    """The share of the planned look, taken at every one."""
    return binomial.lower(a, n, anytime.PLANNED * alpha)


def _above_only(known: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Ties are in the score's favour."""
    return (1 + (known > scores).sum()).double()[None] / (len(known) + 1)


def _without_one(known: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return (known >= scores).sum().double()[None] / len(known)


@lru_cache(maxsize=8192)
def _quantile(k: int, m: int, size: int, delta: float) -> int:
    return int(betabinom.ppf(1 - delta, m, k, size + 1 - k + 1e-9))


def _pointwise(p: Floats, size: int, delta: float) -> np.ndarray:
    """Each threshold's own quantile, without the union."""
    ranks = np.round(p * (size + 1)).astype(int).tolist()
    return np.array([_quantile(k, len(p), size, delta) for k in ranks])


MUTANTS: dict[str, Check] = {
    "anytime: Clopper-Pearson at every look": partial(
        check_anytime, lower=lambda a, n, alpha, planned: binomial.lower(a, n, alpha)
    ),
    "anytime: the planned share at every look": partial(check_anytime, lower=_planned_everywhere),
    "anytime: four times alpha": partial(check_anytime, lower=_half_as_certain),
    "anytime quantile: fixed ranks at every look": partial(
        check_anytime_quantiles,
        upper=lambda n, p, alpha, planned: quantile.upper_rank(n, p, 0.0, alpha),
        lower=lambda n, p, alpha, planned: quantile.lower_rank(n, p, 0.0, alpha),
    ),
    "anytime mean: the sample's": partial(
        check_anytime_means,
        bound=lambda sample, c, alpha, planned: np.full(np.shape(c), sample.mean),
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
