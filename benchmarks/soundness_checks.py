"""Certificates on scores whose smoothed value is known: how often are they false?

Every score here is a nondecreasing function of one direction of the noise, with a base score that
may be random, so that the worst perturbation of size r moves Z by c = r / sigma along it, and the
truth is a sum of normal distribution functions. ``soundness.py`` runs the checks at length, the
tests briefly; ``MUTANTS`` are wrong certificates that the same checks must catch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from gradood.evaluation import evaluate_guaranteed
from gradood.smoothing.bounds import binomial, histogram, mean, quantile, sequential

Floats = npt.NDArray[np.float64]
Generator = np.random.Generator
ALPHA = 0.05
SHIFTS = np.array([0.0, 0.5, 1.0, 2.0])
MEAN_SHIFTS = SHIFTS[::2]  # these bounds take longest


class Cell(NamedTuple):
    """Failures of one certificate on one score at one n and one radius."""

    certificate: str
    score: str
    n: int
    c: float
    failures: int
    repetitions: int
    alpha: float = ALPHA

    @property
    def p_value(self) -> float:
        """P(at least as many failures) if each has probability alpha."""
        return float(binom.sf(self.failures - 1, self.repetitions, self.alpha))


class Known(NamedTuple):
    """A score, and P(score <= t) when Z has moved by c; NaN is drawn, and counts as +inf."""

    draw: Callable[[Generator, tuple[int, ...]], Floats]
    cdf: Callable[[Floats, float], Floats]

    def mean(self, c: float) -> float:
        """The mean of the score cut to [0, 1]: the integral of its survival function."""
        t = (np.arange(256_000) + 0.5) / 256_000
        return float(1 - self.cdf(t, c).mean())

    def quantile(self, p: float, c: float) -> float:
        """The smallest t with P(score <= t) >= p, by bisection."""
        low, high = -64.0, 64.0
        if self.cdf(np.array(-1e300), c) >= p:
            return -np.inf
        if self.cdf(np.array(1e300), c) < p:
            return np.inf
        while high - low > 1e-12:
            middle = (low + high) / 2
            low, high = (low, middle) if self.cdf(np.array(middle), c) >= p else (middle, high)
        return high


def probit(a: float, b: float) -> Known:
    """``Phi(a + b Z)``, rounded up to 8 bits."""
    return Known(
        lambda rng, shape: np.ceil(256 * ndtr(a + b * rng.standard_normal(shape))) / 256,
        lambda t, c: ndtr((ndtri(np.floor(256 * np.clip(t, 0, 1)) / 256) - a) / b - c),
    )


def stairs(levels: list[float], steps: list[float]) -> Known:
    """``levels[i]`` between the steps ``i - 1`` and ``i`` of Z, ascending; the last may be NaN."""
    values, edges = np.array(levels), np.array(steps)

    def cdf(t: Floats, c: float) -> Floats:
        reached = np.searchsorted(np.where(np.isnan(values), np.inf, values), t, side="right")
        return ndtr(np.append(-np.inf, np.append(edges, np.inf))[reached] - c)

    return Known(
        lambda rng, shape: values[np.searchsorted(edges, rng.standard_normal(shape))],
        cdf,
    )


def mixture(share: float, one: Known, other: Known) -> Known:
    """A random base score: ``one`` with probability ``share``, else ``other``."""

    def draw(rng: Generator, shape: tuple[int, ...]) -> Floats:
        return np.where(rng.random(shape) < share, one.draw(rng, shape), other.draw(rng, shape))

    return Known(draw, lambda t, c: share * one.cdf(t, c) + (1 - share) * other.cdf(t, c))


def line(slope: float, offset: float) -> Known:
    """``offset + slope Z``, the score of a linear detector."""
    return Known(
        lambda rng, shape: offset + slope * rng.standard_normal(shape),
        lambda t, c: ndtr((t - offset) / slope - c),
    )


def halfspace(p: float) -> Known:
    """The indicator of a half-space of probability p."""
    return stairs([0.0, 1.0], [-float(ndtri(p))])


ATOMS = stairs([0.0, 0.25, 0.26, 0.7, 1.0], [-1.0, 0.2, 1.3, 2.5])
MEANS = {
    "half-space .3": halfspace(0.3),
    "low, small variance": probit(-1.93, 0.2),
    "heavy tail": probit(-2.2, 1.4),
    "large variance": probit(0.0, 3.0),
    "atoms": ATOMS,
    "NaN in the tail": stairs([0.1, 0.4, np.nan], [0.0, 1.0]),
    "mixture": mixture(0.3, ATOMS, probit(-0.55, 0.3)),
}
QUANTILES = {
    "line": line(2.0, -1.0),
    "atoms": ATOMS,
    "infinite tails": stairs([-np.inf, 0.0, 3.0, np.inf], [-1.0, 0.5, 2.0]),
    "NaN in the tail": stairs([-2.0, 1.0, np.nan], [0.3, 1.5]),
    "mixture": mixture(0.4, line(1.0, 0.0), line(0.5, 3.0)),
}

BOUNDS = (mean.kl, mean.dkw, mean.rank, mean.betting, mean.default)

Bound = Callable[..., Floats]


def columns(scores: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """The histogram that ``vote_count`` makes over the default edges, or over exact ones.

    Few values get columns of their own: rounding would hide that a bound is slightly too small.
    """
    edges = np.asarray(histogram.default_edges(), np.float64)
    values = np.unique(scores[~np.isnan(scores)])
    if len(values) <= 1000:
        edges = np.unique(np.clip([0, *values, *np.nextafter(values, -1)], 0, 1))
    column = np.searchsorted(edges, scores, side="left")
    column = np.where(np.isnan(scores), len(edges) + 1, column)
    return np.bincount(column, minlength=len(edges) + 2), edges


def check_means(
    rng: Generator,
    n: int,
    repetitions: int,
    bounds: Sequence[mean.Bound] = BOUNDS,
    scores: Sequence[str] = tuple(MEANS),
) -> Iterator[Cell]:
    """Upper bounds of the score, and lower bounds of one minus it, turned around."""
    for name in scores:
        known = MEANS[name]
        truth = np.array([known.mean(c) for c in MEAN_SHIFTS]) - 1e-6  # of the integral
        mirrored = (
            np.arange(repetitions) % 4 == 0
        )  # the same code behind a mirror: a quarter will do
        wrong = np.zeros((len(bounds), 2, len(MEAN_SHIFTS)), int)
        for mirror in mirrored:
            scored = known.draw(rng, (n,))
            seed = int(rng.integers(2**32))
            counts, edges = columns(scored)
            for i, bound in enumerate(bounds):
                wrong[i, 0] += mean.upper(counts, edges, MEAN_SHIFTS, ALPHA, bound, seed) < truth
            if mirror:
                counts, edges = columns(1 - scored)
                for i, bound in enumerate(bounds):
                    below = mean.lower(counts, edges, MEAN_SHIFTS, ALPHA, bound, seed)
                    wrong[i, 1] += 1 - below < truth
        for bound, both in zip(bounds, wrong, strict=True):
            label = f"mean ({bound.__name__})"
            for c, above, below in zip(MEAN_SHIFTS, *both, strict=True):
                yield Cell(f"{label} upper", name, n, float(c), int(above), repetitions)
                yield Cell(f"{label} lower", name, n, float(c), int(below), int(mirrored.sum()))


def check_quantiles(
    rng: Generator,
    n: int,
    repetitions: int,
    upper_rank: Bound = quantile.upper_rank,
    lower_rank: Bound = quantile.lower_rank,
    value: Bound = quantile.upper,
) -> Iterator[Cell]:
    """The order statistic against the true worst quantile, above and (mirrored) below."""
    batch = max(1, 2_000_000 // n)
    places = [(p, float(c)) for p in (0.1, 0.5, 0.9) for c in SHIFTS]
    # The 1 - p quantile of -s is minus the p quantile of s, taken from the right.
    high = np.array([upper_rank(n, p, c, ALPHA) for p, c in places])
    low = np.array([lower_rank(n, 1 - p, c, ALPHA) for p, c in places])
    for name, known in QUANTILES.items():
        above, below = [], []
        for _ in range(0, repetitions, batch):
            scores = known.draw(rng, (min(batch, repetitions), n))
            above.append(value(scores, high))
            below.append(-quantile.lower(-scores, low))
        for i, (p, c) in enumerate(places):
            for label, parts, q in (
                (f"{p} upper", above, p),
                (f"{1 - p:.1f} lower", below, p + 1e-12),
            ):
                found = np.concatenate([part[:, i] for part in parts])
                failed = int((found < known.quantile(q, c) - 1e-9).sum())
                yield Cell(f"quantile {label}", name, n, c, failed, len(found))


class Claims(NamedTuple):
    """What a class certificate says; arrays over repetitions."""

    label: npt.NDArray[np.int64]
    lower: Floats
    upper: Floats
    radius: Floats


def class_certificate(pilot: Floats, counts: Floats, sigma: float, alpha: float) -> Claims:
    """Certificates (a) from votes ``[repetitions, classes]``, as ``certify_class`` makes them."""
    label = pilot.argmax(1)
    rows, n = np.arange(len(label)), counts.sum(1)
    others = counts.copy()
    others[rows, label] = -1
    lower = binomial.lower(counts[rows, label], n, alpha / 2)
    upper = np.minimum(1 - lower, binomial.upper(others.max(1), n, alpha / 2))
    radius = np.maximum(sigma / 2 * (ndtri(lower) - ndtri(upper)), 0)
    return Claims(label, lower, upper, radius)


#: Slabs of a line, cut at these values of Z: two classes, three, and ten of equal probability.
SLABS = {
    "two classes": (0.3,),
    "three classes": (-0.1, 0.2),
    "ten equal classes": tuple(ndtri(np.arange(1, 10) / 10)),
}
SIGMA = 0.25


def slab_probabilities(cuts: tuple[float, ...], c: float) -> Floats:
    """Of each class, when Z has moved by c."""
    return np.diff(ndtr(np.array([-np.inf, *cuts, np.inf]) - c))


@lru_cache
def slab_radius(cuts: tuple[float, ...], label: int) -> float:
    """How far x can move before another class is at least as likely, in units of x."""
    for move in np.linspace(0, 6, 3001):
        for c in (move, -move):
            p = slab_probabilities(cuts, c)
            if np.delete(p, label).max() >= p[label] - 1e-12:
                return float(SIGMA * move)
    return np.inf


def check_classes(
    rng: Generator,
    n: int,
    repetitions: int,
    certify: Callable[..., Claims] = class_certificate,
    alpha: float = ALPHA,
) -> Iterator[Cell]:
    """A claim is false if a bound is on the wrong side, or the radius reaches another class."""
    for name, cuts in SLABS.items():
        p = slab_probabilities(cuts, 0.0)
        pilot = rng.multinomial(64, p, repetitions)
        claims = certify(pilot, rng.multinomial(n, p, repetitions), SIGMA, alpha)
        second = np.array([np.delete(p, k).max() for k in range(len(p))])[claims.label]
        truth = np.array([slab_radius(cuts, k) for k in range(len(p))])[claims.label]
        wrong = (claims.lower > p[claims.label]) | (claims.upper < second)
        wrong |= claims.radius > truth
        yield Cell("class", name, n, np.nan, int(wrong.sum()), repetitions)


def decision_radius(successes: Floats, n: int, sigma: float, alpha: float) -> Floats:
    """Certificate (e) of the median at fixed n: positive anomalous, negative normal, 0 abstains."""
    anomalous = ndtri(binomial.lower(successes, n, alpha / 2))
    normal = ndtri(binomial.upper(successes, n, alpha / 2))
    return sigma * np.where(anomalous > 0, anomalous, np.where(normal < 0, normal, 0.0))


def check_decisions(
    rng: Generator, n: int, repetitions: int, certify: Bound = decision_radius
) -> Iterator[Cell]:
    """ "Anomalous within R" is false if R is above the true radius, "normal" likewise."""
    for c in (0.0, 0.5, 1.0, 2.0):
        radius = certify(rng.binomial(n, ndtr(c), repetitions), n, SIGMA, ALPHA)
        wrong = (radius > SIGMA * c + 1e-12) | (radius < 0)
        yield Cell("decision", "half-space", n, c, int(wrong.sum()), repetitions)


def check_sequential(
    rng: Generator, n: int, repetitions: int, decide: Bound = sequential.decide
) -> Iterator[Cell]:
    """At p = p0 the claim p > p0 is false; n is n_max. Looks 100 times on the way."""
    for c in (0.0, 0.5, 1.0, 2.0):
        p0 = ndtr(c)
        looks = np.unique(np.linspace(1, n, min(n, 100)).round().astype(int))
        fresh = rng.binomial(np.diff(looks, prepend=0), p0, (repetitions, len(looks)))
        answers = decide(fresh.cumsum(1), looks, p0, ALPHA, n_max=n)
        ended = np.argmax(answers != sequential.GO_ON, axis=1)
        first = np.take_along_axis(answers, ended[:, None], 1)[:, 0]
        wrong = int((first == sequential.CERTIFY).sum())
        yield Cell("decision, sequential", "half-space", n, c, wrong, repetitions)


def check_data_sets(
    rng: Generator, n: int, repetitions: int, evaluate: Callable[..., object] = evaluate_guaranteed
) -> Iterator[Cell]:
    """Forty anomalous medians end just below a normal one: the true worst AUROC is 0."""
    anomalous, c = 40, 0.5
    for composition, point_alpha in (("bonferroni", ALPHA / (anomalous + 1)), ("binomial", 0.02)):
        rank = int(quantile.lower_rank(n, 0.5, c, point_alpha))
        wrong = 0
        for _ in range(repetitions):
            # The rank-th of n uniform variables, without drawing all of them.
            uniform = rng.beta(rank, n - rank + 1, anomalous) if rank else np.zeros(anomalous)
            lower = ndtri(uniform) + c - 1e-9
            options = dict(point_alpha=point_alpha, alpha=ALPHA, composition=composition)
            options["noise"] = ([0], range(1, anomalous + 1))
            wrong += evaluate([0.0], lower, 0.1, **options).clean_normals.auroc[0] > 0
        yield Cell(f"data set, {composition}", "40 half-spaces", n, c, int(wrong), repetitions)


def found(cells: list[Cell]) -> list[Cell]:
    """Cells with more failures than alpha explains; chance has one in 100,000 sound cells so."""
    return [cell for cell in cells if cell.p_value < 1e-5]
