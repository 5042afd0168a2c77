"""How tight the bounds are: the table of the specification, measured again.

    python benchmarks/bounds.py [--repetitions 10] [--out benchmarks/results]

Writes ``bounds.csv``, a row for every score, n, radius and bound, and ``bounds.md``.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from gradood.smoothing.bounds import histogram, mean, sequential

ALPHA = 1e-3
#: Scores Phi(a + b Z): the smoothed value under the worst perturbation is known.
SCORES = {
    "low, small variance": (-1.93, 0.2),
    "heavy tail": (-2.2, 1.4),
    "middle, large variance": (0.0, 3.0),
    "nearly binary": (-23.3, 10.0),
    "middle, small variance": (-0.55, 0.3),
    "high, small variance": (1.93, 0.2),
}
BOUNDS = {
    "KL": (mean.kl, ALPHA),
    "betting": (mean.betting, ALPHA),
    "DKW": (mean.dkw, ALPHA),
    "rank": (mean.rank, ALPHA),
    "betting, α/2": (mean.betting, ALPHA / 2),
    "DKW, α/2": (mean.dkw, ALPHA / 2),
    "default": (mean.default, ALPHA),
}
SIZES = (100, 1_000, 10_000, 100_000)
SHIFTS = np.array([0.0, 0.5, 1.0, 2.0])


class Row(NamedTuple):
    """A mean over repetitions."""

    score: str
    n: int
    c: float
    truth: float
    bound: str
    value: float
    excess: float


def measure(repetitions: int) -> list[Row]:
    rows = []
    edges = np.asarray(histogram.default_edges(), np.float64)
    for seed, (score, (a, b)) in enumerate(SCORES.items()):
        truth = ndtr((a + b * SHIFTS) / math.hypot(1, b))
        for n in SIZES:
            rng = np.random.default_rng([seed, n])
            found = np.zeros((len(BOUNDS), len(SHIFTS)))
            times = repetitions if n < 100_000 else -(-repetitions // 3)
            for _ in range(times):
                scores = ndtr(a + b * rng.standard_normal(n))
                column = np.searchsorted(edges, scores, side="left")
                counts = np.bincount(column, minlength=len(edges) + 2)
                draw = int(rng.integers(2**32))
                found += [
                    mean.upper(counts, edges, SHIFTS, alpha, f, draw)
                    for f, alpha in BOUNDS.values()
                ]
            for name, values in zip(BOUNDS, found / times, strict=True):
                for c, at, value in zip(SHIFTS, truth, values, strict=True):
                    rows.append(Row(score, n, float(c), float(at), name, value, value - at))
    return rows


def samples_saved(c: float, inputs: int, rng: np.random.Generator) -> float:
    """100,000 over the mean number of samples of the sequential test, R* / sigma ~ N(1.3, 1)."""
    n_max, p0, used = 100_000, float(ndtr(c)), 0
    for p in ndtr(rng.normal(1.3, 1.0, inputs)):
        successes = n = 0
        answer = sequential.GO_ON
        while answer == sequential.GO_ON:
            step = min(max(32, n // 10), n_max - n)
            successes, n = successes + rng.binomial(step, p), n + step
            answer = sequential.decide(successes, n, p0, ALPHA, n_max=n_max)
        used += n
    return n_max * inputs / used


def report(rows: list[Row], repetitions: int) -> str:
    value = {(r.score, r.n, r.c, r.bound): r for r in rows}
    shown = [name for name in BOUNDS if "/2" not in name]
    lines = [
        "# How tight the bounds are",
        "",
        f"Made by `OMP_NUM_THREADS=1 python benchmarks/bounds.py --repetitions {repetitions}`; all "
        "radii are in `bounds.csv`. Upper bounds of the smoothed mean from a histogram of "
        f"{len(histogram.default_edges())} edges, α = {ALPHA:g}, r / σ = 1; means over "
        "repetitions.",
        "",
        "| score (true supremum) | n | " + " | ".join(shown) + " | excess: default / DKW |",
        "| --- | ---: |" + " ---: |" * (len(shown) + 1),
    ]
    for score in SCORES:
        for n in SIZES:
            cells = [value[score, n, 1.0, name] for name in shown]
            best = min(c.value for c in cells)
            numbers = [f"**{c.value:.4f}**" if c.value == best else f"{c.value:.4f}" for c in cells]
            ratio = cells[-1].excess / value[score, n, 1.0, "DKW"].excess
            head = f"| {score} ({cells[0].truth:.4f}) | {n} | "
            lines.append(head + " | ".join(numbers) + f" | {ratio:.3f} |")
    lines += ["", "## Against the best of the others, and the price of α/2", ""]
    lines += [
        "Geometric mean over all scores and radii of the default's excess over the smallest excess "
        "of KL, betting, DKW and rank at full α; and the largest ratio, over scores and radii, to "
        "the excess of betting at α/2 and of DKW at α/2.",
        "",
        "| n | default / best of four | worst default / betting, α/2 | worst default / DKW, α/2 |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for n in SIZES:
        cases = [(s, n, float(c)) for s in SCORES for c in SHIFTS]
        default = np.array([value[(*case, "default")].excess for case in cases])
        four = [[value[(*case, name)].excess for name in shown[:-1]] for case in cases]
        ratio = math.exp(np.log(default / np.min(four, 1)).mean())
        worst = [
            (default / [value[(*case, name)].excess for case in cases]).max()
            for name in ("betting, α/2", "DKW, α/2")
        ]
        lines.append(f"| {n} | {ratio:.3f} | {worst[0]:.3f} | {worst[1]:.3f} |")
    lines += ["", "## Samples saved by the sequential test", ""]
    rng = np.random.default_rng(0)
    saved = [f"{samples_saved(c, 300, rng):.0f}× at r / σ = {c:g}" for c in (0.5, 1.0, 2.0)]
    lines.append(
        "Mean number of samples of 300 inputs with true radii R* / σ ~ N(1.3, 1), α = 0.001, at "
        "most 100,000 samples, futility .02: fewer than fixed n = 100,000 by "
        + ", ".join(saved)
        + "."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = measure(options.repetitions)
    with (options.out / "bounds.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)
    text = report(rows, options.repetitions)
    (options.out / "bounds.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
