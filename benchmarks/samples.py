"""What looking as often as one likes costs, and how many samples a decision takes: exactly.

    python benchmarks/samples.py [--out benchmarks/results]

Writes ``samples.md``. Nothing is simulated: the distribution of a count is carried from look to
look, and what crosses the boundary is taken out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.special import ndtr, ndtri, rel_entr

from gradood.smoothing.bounds import anytime, binomial, quantile, sequential

ALPHA = 1e-3
SIDE = ALPHA / 2
ASKED = {1_000: 0.95, 10_000: 0.98, 100_000: 0.99}
PROBABILITIES = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
#: r / sigma, and the probability of the class or of the side that is true. The last is the easiest.
CASES = ((0.0, 0.6), (1.0, 0.95), (1.0, 0.9), (0.5, 0.8), (1.0, 0.999))
N_MAX, TILE = 10_000, 64


def ratios(n: int, planned: int) -> list[float]:
    """Anytime radius over the fixed one, where a share p of n samples is for the class."""
    hits = np.round(n * np.array(PROBABILITIES))
    anytimes = ndtri(anytime.lower(hits, n, SIDE, planned))
    return [float(r) for r in anytimes / ndtri(binomial.lower(hits, n, SIDE))]


def schedule(size: Callable[[int], int]) -> list[int]:
    looks = [0]
    while looks[-1] < N_MAX:
        looks.append(min(looks[-1] + size(looks[-1]), N_MAX))
    return looks


def walk(limits: list[int], looks: list[int], p: float) -> tuple[float, float]:
    """P(a count reaches its limit at some look), and the mean number of samples until then."""
    alive, crossed, mean = np.ones(1), 0.0, 0.0
    for before, here, limit in zip(looks, looks[1:], limits, strict=False):
        step = np.arange(here - before + 1)
        alive = np.convolve(alive, stats.binom.pmf(step, here - before, p))
        now = float(alive[limit:].sum())
        crossed, mean = crossed + now, mean + now * here
        alive = alive[:limit]
    return crossed, mean + looks[-1] * float(alive.sum())


def samples(c: float, p: float) -> tuple[float, float, float]:
    """Mean samples until "p > Phi(c)" is certified at alpha / 2: of Wald's test, before, and now.

    Wald's knows p. Before, the e-value was tested at alpha / 2 itself, every 32 samples.
    """
    p0 = float(sequential.coarse(ndtr(c)))
    wald = np.log(1 / SIDE) / (rel_entr(p, p0) + rel_entr(1 - p, 1 - p0))
    found = []
    for size, level in (
        (lambda start: 32, SIDE),
        (lambda start: sequential.block_at(start, TILE), sequential.level(p0, SIDE, N_MAX, TILE)),
    ):
        looks = schedule(size)
        found.append(walk(sequential.first_count(looks[1:], p0, level).tolist(), looks, p)[1])
    return float(wald), found[0], found[1]


def spent(c: float) -> tuple[float, float]:
    """Shares of alpha / 2 that are spent at p = p0: by a test, and by an anytime bound to 2000."""
    p0 = float(sequential.coarse(ndtr(c)))
    level = sequential.level(p0, SIDE, N_MAX, TILE)
    looks = schedule(lambda start: sequential.block_at(start, TILE))
    limits = sequential.first_count(looks[1:], p0, level).tolist()
    last = np.arange(N_MAX + 1)
    enough = binomial.lower(last, N_MAX, sequential.left(p0, SIDE, N_MAX, TILE)) > p0
    limits[-1] = int(last[enough].min(initial=N_MAX + 1))
    every = np.arange(1, 2001)
    always = quantile.anytime_upper_rank(every, p0, SIDE, 1_000).tolist()
    return walk(limits, looks, p0)[0] / SIDE, walk(always, [0, *every.tolist()], p0)[0] / SIDE


def report() -> str:
    lines = [
        "# The price of looking, and samples a decision",
        "",
        "Made by `python benchmarks/samples.py`; exact, nothing is simulated. "
        f"alpha = {ALPHA:g}, half of it for each side.",
        "",
        "## Anytime radius over that of a fixed n",
        "",
        "A share p of n samples is for the class, of two. *planned*: n is the settings'. "
        "*passing*: it is a look on the way to 7 n. *between*: the look at 1.5 n, against a fixed "
        "1.5 n.",
        "",
        "| n | look | asked | " + " | ".join(f"p = {p:g}" for p in PROBABILITIES) + " |",
        "| ---: | --- | ---: |" + " ---: |" * len(PROBABILITIES),
    ]
    for n, asked in ASKED.items():
        for name, look, planned in (
            ("planned", n, n), ("passing", n, 7 * n), ("between", 3 * n // 2, 7 * n),
        ):  # fmt: skip
            values = ratios(look, planned)
            cells = " | ".join(f"{value:.3f}" for value in values)
            wanted = f"{asked:g}" if name == "planned" else ""
            lines.append(f"| {n} | {name} | {wanted} | {cells} |")
    lines += [
        "",
        "## Samples until a radius is certified",
        "",
        "Mean number, one side of a decision at alpha / 2, at most 10,000. *Wald*: the sequential "
        "test that knows p, ln(2 / alpha) over the divergence. *before*: the e-value at alpha / 2, "
        "every 32 samples. *now*: at the level that the exact calculation allows, with small "
        "blocks first.",
        "",
        "| r / σ | p | Wald | before | now | fewer |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for c, p in CASES:
        wald, before, now = samples(c, p)
        lines.append(
            f"| {c:g} | {p:g} | {wald:.0f} | {before:.1f} | {now:.1f} | {1 - now / before:.1%} |"
        )
    lines += [
        "",
        "## What is spent of alpha / 2",
        "",
        "At p = p₀, where the claim is just false: the test with its last look at 10,000, and the "
        "anytime bound planned for 1,000 at every number of samples up to 2,000.",
        "",
        "| r / σ | test | anytime bound |",
        "| ---: | ---: | ---: |",
    ]
    lines += [f"| {c:g} | {spent(c)[0]:.3f} | {spent(c)[1]:.3f} |" for c in (0.0, 0.5, 1.0, 2.0)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    (parser.parse_args().out / "samples.md").write_text(report(), encoding="utf-8")


if __name__ == "__main__":
    main()
