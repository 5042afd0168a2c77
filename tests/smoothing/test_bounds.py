import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.special import ndtr, ndtri
from scipy.stats import binom, binomtest

from gradood.smoothing.bounds import binomial, dataset, histogram, mean, quantile, sequential

ALPHA = 1e-3


@pytest.mark.parametrize(
    ("k", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (1, 50), (49, 50), (517, 1000), (3, 10**5)]
)
@pytest.mark.parametrize("alpha", [0.2, 1e-3, 1e-9])
def test_clopper_pearson_is_where_the_tail_is_alpha(k: int, n: int, alpha: float) -> None:
    lower, upper = float(binomial.lower(k, n, alpha)), float(binomial.upper(k, n, alpha))
    assert lower == 0 if k == 0 else binom.sf(k - 1, n, lower) == pytest.approx(alpha, rel=1e-6)
    assert upper == 1 if k == n else binom.cdf(k, n, upper) == pytest.approx(alpha, rel=1e-6)
    exact = binomtest(k, n).proportion_ci(1 - 2 * alpha, "exact")
    assert (lower, upper) == pytest.approx((exact.low, exact.high), rel=1e-6, abs=1e-12)


def test_clopper_pearson_broadcasts_and_takes_large_counts() -> None:
    assert binomial.lower(np.arange(3)[:, None], 10, [0.1, 0.2]).shape == (3, 2)
    n = 10**9
    assert float(binomial.lower(n // 2, n, ALPHA)) == pytest.approx(
        0.5 - 3.09 / 2 / n**0.5, rel=1e-6
    )


@given(st.floats(-35, 8), st.floats(-4, 4))
def test_shift_moves_the_argument_in_both_tails(a: float, c: float) -> None:
    moved = float(binomial.shift(ndtr(a), c))
    if a < 6:  # above, 1 - p has lost its digits before the shift
        assert moved == pytest.approx(ndtr(a + c), rel=1e-9 * (1 + math.exp(max(a, 0) ** 2 / 2)))


def test_shift_is_exact_at_the_ends_and_without_perturbation() -> None:
    assert binomial.shift([0, 1], [[3.0], [-3.0]]).tolist() == [[0, 1], [0, 1]]
    p = np.array([0, 1e-300, 1e-9, 0.3, 1 - 1e-16, 1])
    assert (binomial.shift(p, 0.0) == p).all()


@pytest.mark.parametrize(
    ("top", "second", "two_sided", "one_sided"),
    [(0.9, 0.05, 1.443, 1.265), (0.7, 0.1, 0.887, 0.512), (0.4, 0.1, 0.499, None)],
)
def test_radii_of_classes_are_those_of_the_specification(
    top: float, second: float, two_sided: float, one_sided: float | None
) -> None:
    n = 100_000
    lower = binomial.lower(round(top * n), n, ALPHA / 2)
    upper = np.minimum(1 - lower, binomial.upper(round(second * n), n, ALPHA / 2))
    assert (ndtri(lower) - ndtri(upper)) / 2 == pytest.approx(two_sided, abs=1e-3)
    usual = ndtri(binomial.lower(round(top * n), n, ALPHA))
    assert usual == pytest.approx(one_sided, abs=1e-3) if one_sided else usual < 0


@pytest.mark.parametrize(("n", "c"), [(100, 1.50), (1000, 2.46), (10_000, 3.20), (100_000, 3.81)])
def test_the_median_is_feasible_up_to_the_specified_radius(n: int, c: float) -> None:
    limit = float(ndtri(ALPHA ** (1 / n)))
    assert limit == pytest.approx(c, abs=0.006)
    around = [limit - 1e-6, limit + 1e-6]
    assert quantile.upper_rank(n, 0.5, around, ALPHA).tolist() == [n, n + 1]
    assert quantile.lower_rank(n, 0.5, around, ALPHA).tolist() == [1, 0]


@pytest.mark.parametrize("n", [1, 5, 41, 300])
def test_ranks_are_the_first_and_last_with_a_small_enough_tail(n: int) -> None:
    for p, c, alpha in itertools.product([0.02, 0.5, 0.9], [0.0, 0.7], [0.3, 0.05, 1e-4]):
        up, down = float(binomial.shift(p, c)), float(binomial.shift(p, -c))
        above = [k for k in range(1, n + 1) if binom.sf(k - 1, n, up) <= alpha]
        below = [k for k in range(1, n + 1) if binom.cdf(k - 1, n, down) <= alpha]
        assert quantile.upper_rank(n, p, c, alpha) == min(above, default=n + 1)
        assert quantile.lower_rank(n, p, c, alpha) == max(below, default=0)


def test_order_statistics_count_nan_against_the_claim() -> None:
    scores = np.array([[3.0, -math.inf, math.nan, 1.0], [5.0, 5.0, math.inf, 2.0]])
    ranks = np.arange(6)
    inf = math.inf
    assert quantile.upper(scores, ranks).tolist() == [
        [-inf, -inf, 1, 3, inf, inf],
        [-inf, 2, 5, 5, inf, inf],
    ]
    assert quantile.lower(scores, ranks).tolist() == [
        [-inf, -inf, -inf, 1, 3, inf],
        [-inf, 2, 5, 5, inf, inf],
    ]


def column_counts(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The histogram of ``ops.vote_count``, by its definition."""
    counts = np.zeros(len(edges) + 2, np.int64)
    for v in scores:
        counts[len(edges) + 1 if math.isnan(v) else np.searchsorted(edges, v, side="left")] += 1
    return counts


@given(
    st.lists(st.floats(-2, 2) | st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf])),
    st.lists(st.floats(-1, 1), min_size=1, max_size=6, unique=True).map(sorted),
)
def test_order_statistics_of_a_histogram_enclose_those_of_the_scores(
    scores: list[float], edges: list[float]
) -> None:
    counts, ranks = column_counts(np.array(scores), np.array(edges)), np.arange(len(scores) + 2)
    exact = quantile.upper(scores, ranks)
    above = quantile.upper_from_counts(counts, edges, ranks)
    assert (above >= exact).all()
    # No looser than the edges: every bound is the first edge at or above the score.
    first = np.append(edges, math.inf)[np.searchsorted(edges, exact[1:-1], side="left")]
    assert (above[1:-1] == first).all()
    exact = quantile.lower(scores, ranks)
    below = quantile.lower_from_counts(counts, edges, ranks)
    assert (below <= exact).all()
    last = np.append(-math.inf, edges)[np.searchsorted(edges, exact[1:-1], side="left")]
    assert (below[1:-1] == last).all()


def regime(a: float, b: float, n: int, seed: int = 0) -> np.ndarray:
    return ndtr(a + b * np.random.default_rng(seed).standard_normal(n))


#: Scores Phi(a + b Z) of the table in certificates.md.
REGIMES = {"low": (-1.93, 0.2), "heavy": (-2.2, 1.4), "middle": (0, 3.0), "binary": (-23.3, 10.0)}
TABLE = {  # n = 10k, alpha = 1e-3, c = 1
    "low": (0.045, 0.212, 0.190, 0.176, 0.066),
    "heavy": (0.321, 0.416, 0.410, 0.379, 0.358),
    "middle": (0.829, 0.853, 0.854, 0.841, 0.850),
    "binary": (0.093, 0.120, 0.124, 0.185, 0.126),
}

#: The default bound: at or below the best of the four, which differs from score to score.
LIMIT = {"low": 0.063, "heavy": 0.346, "middle": 0.843, "binary": 0.120}


@pytest.mark.parametrize("name", REGIMES)
def test_mean_bounds_are_those_of_the_specification(name: str) -> None:
    a, b = REGIMES[name]
    truth, *expected = TABLE[name]
    assert ndtr((a + b) / math.hypot(1, b)) == pytest.approx(truth, abs=1e-3)
    bounds = (mean.kl, mean.betting, mean.dkw, mean.rank, mean.default)
    sampled = [
        [
            float(f(histogram.of_scores(regime(a, b, 10_000, i), i), np.array(1.0), ALPHA))
            for f in bounds
        ]
        for i in range(5)
    ]
    *found, default = np.mean(sampled, 0)
    # Five samples, against an unknown number in the table: heavy tails vary by .005 each.
    assert found == pytest.approx(expected, abs=0.008)
    assert truth < default < LIMIT[name]
    if name == "low":
        assert default - truth < (found[2] - truth) / 5


@pytest.mark.parametrize("n", [100, 1000, 10_000])
@pytest.mark.parametrize("c", [0.0, 0.5, 1.0, 2.0])
def test_default_is_never_looser_than_the_fixed_bets_nor_dkw_at_half_alpha(
    n: int, c: float
) -> None:
    for a, b in REGIMES.values():
        excess = []
        for seed in range(4):
            sample = histogram.of_scores(np.ceil(512 * regime(a, b, n, seed)) / 512, seed)
            shift = np.array(c)
            default = float(mean.default(sample, shift, ALPHA))
            assert default <= mean.betting(sample, shift, ALPHA / 2)
            excess.append((default, float(mean.dkw(sample, shift, ALPHA / 2))))
        default, dkw = np.mean(excess, 0) - ndtr((a + b * c) / math.hypot(1, b))
        # With 100 scores the pilot is thin, and there is little to gain on half-and-half scores.
        assert default <= dkw * (1.08 if n == 100 else 1.0)


BOUNDS = [mean.kl, mean.betting, mean.dkw, mean.rank, mean.tangent, mean.default]


@pytest.mark.parametrize("bound", BOUNDS)
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32) | st.sampled_from([0.0, 1.0, math.nan]), min_size=1),
    st.sampled_from([0.0, 0.3, 2.0, 40.0]),
)
def test_a_histogram_gives_wider_bounds_than_the_scores(
    bound: mean.Bound, scores: list[float], c: float
) -> None:
    edges = histogram.default_edges()
    counts = column_counts(np.array(scores, np.float32), edges)
    upper, lower = (f(counts, edges, c, 0.05, bound) for f in (mean.upper, mean.lower))
    filled = np.nan_to_num(scores, nan=1.0)
    assert filled.mean() <= upper + 1e-12 and upper <= 1
    assert np.nan_to_num(scores, nan=0.0).mean() >= lower - 1e-12 and lower >= 0
    if bound not in (mean.tangent, mean.default):  # those also draw other pilots
        assert (
            bound(histogram.of_scores(scores), np.array(c), 0.05) <= upper + 1e-4
        )  # of the search


def test_exact_zeros_and_ones_are_not_rounded() -> None:
    edges = histogram.default_edges()
    assert edges.dtype == np.float32 and (np.diff(edges) > 0).all()
    counts = column_counts(np.repeat(np.float32([0, 1]), [900, 100]), edges)
    exact = mean.kl(histogram.of_scores([0.0] * 900 + [1.0] * 100), np.array(0.0), ALPHA)
    assert mean.upper(counts, edges, 0, ALPHA, mean.kl) == pytest.approx(float(exact), abs=1e-12)
    below = 1 - mean.kl(histogram.of_scores([1.0] * 900 + [0.0] * 100), np.array(0.0), ALPHA)
    assert mean.lower(counts, edges, 0, ALPHA, mean.kl) == pytest.approx(float(below), abs=1e-7)


def test_mean_bounds_of_many_inputs_and_radii_are_those_of_each() -> None:
    edges = histogram.default_edges()
    counts = np.stack([column_counts(regime(a, b, 300), edges) for a, b in REGIMES.values()])
    grid, c = counts.reshape(2, 2, -1), np.array([0.0, 0.5, 1.0])
    seeds = np.array([[7, 1], [2**32 - 1, 0]])
    for f in (mean.upper, mean.lower):
        together = f(grid, edges, c, ALPHA, seed=seeds)
        assert together.shape == (2, 2, 3)
        alone = f(counts[1], edges, 0.5, ALPHA, seed=1)
        assert alone.shape == () and together[0, 1, 1] == pytest.approx(float(alone), abs=1e-4)


def test_a_pilot_takes_its_share_of_every_score() -> None:
    sample = histogram.Sample(np.array([0.1, 0.5]), np.array([10_000, 30_000]), seed=3)
    parts = sample.split(0.1, 50)
    assert parts.shape == (50, 2) and (parts <= sample.counts).all()
    assert parts.mean(0) == pytest.approx([1000, 3000], rel=0.02)
    assert (parts.std(0) > 20).all()
    assert (parts == sample.split(0.1, 50)).all()
    # Recorded: bounds have to be the same with every version of NumPy.
    assert sample.split(0.1, 2).tolist() == [[1003, 2987], [998, 2959]]


@pytest.mark.parametrize("n", [1, 7, 60])
@pytest.mark.parametrize("p0", [0.2, 0.5, 0.9])
def test_the_evidence_has_mean_one_at_the_null_and_less_below(n: int, p0: float) -> None:
    successes = np.arange(n + 1)
    evidence = np.exp(sequential.log_evalue(successes, n, p0))
    assert binom.pmf(successes, n, p0) @ evidence == pytest.approx(1, rel=1e-9)
    assert binom.pmf(successes, n, 0.7 * p0) @ evidence < 1
    # A supermartingale: one more trial leaves it where it is on average.
    after = np.exp(sequential.log_evalue([successes, successes + 1], n + 1, p0))
    assert (1 - p0) * after[0] + p0 * after[1] == pytest.approx(evidence, rel=1e-9)


def test_the_sequential_test_certifies_gives_up_and_goes_on() -> None:
    n, p0 = 1000, float(ndtr(1.0))
    answers = sequential.decide([0, 700, 845, 910], n, p0, ALPHA)
    assert answers.tolist() == [sequential.FUTILE, sequential.FUTILE, 0, sequential.CERTIFY]
    assert sequential.decide(0, 0, p0, ALPHA) == sequential.GO_ON
    assert sequential.decide(700, n, p0, ALPHA, futility=0) == sequential.GO_ON
    # At the end the fixed bound has what is left of alpha: it needs fewer successes.
    share = ALPHA - sequential.spent(p0, sequential.level(p0, ALPHA, n), n)
    assert 0 < share < ALPHA
    least = next(k for k in range(n) if binomial.lower(k, n, share) > p0)
    assert least < sequential.first_count(n, p0, ALPHA)
    last = sequential.decide([least - 1, least], n, p0, ALPHA, n_max=n)
    assert last.tolist() == [sequential.FUTILE, sequential.CERTIFY]
    assert sequential.decide(least, n, p0, ALPHA, n_max=n + 1) == sequential.GO_ON


@pytest.mark.parametrize("count", [1, 30, 2000])
@pytest.mark.parametrize("point_alpha", [1e-6, 1e-3, 0.3])
def test_failures_of_a_data_set_are_a_binomial_quantile(count: int, point_alpha: float) -> None:
    expected = binom.ppf(0.9975, count, point_alpha)
    assert dataset.failures(point_alpha, count, 0.0025) == expected


def test_what_bonferroni_costs_is_as_specified() -> None:
    lower = binomial.lower(9500, 10_000, [ALPHA, ALPHA / 1000])
    assert ndtri(lower) == pytest.approx([1.580, 1.546], abs=1.5e-3)
