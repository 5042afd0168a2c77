"""Can an attack break a certificate? APGD-l2 on the smoothed model, at just under its radius.

    OMP_NUM_THREADS=1 python benchmarks/break_certificates.py class --work DIR
    OMP_NUM_THREADS=1 python benchmarks/break_certificates.py confidence --work DIR
    OMP_NUM_THREADS=1 python benchmarks/break_certificates.py gradient --work DIR
    python benchmarks/break_certificates.py report --work DIR

Each part certifies pictures, attacks every one of them, whether normal or anomalous, and tests what
was claimed on fresh noise at the attacked point. It does so chunk by chunk and keeps what it has in
DIR: started again, it goes on where it was interrupted. ``report`` writes
``break_certificates.csv`` and ``.md`` of the chunks that are done, and says how many.

A claim counts as broken where a test on fresh samples refutes it at level ``BETA``; so of N sound
claims the number broken is at most Binomial(N, alpha + BETA), and p is the probability of as many.
As control, some of the pictures are attacked at ten times the radius, and the same claims tested.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from gradood import (
    GradientMahalanobis,
    Smoothing,
    certify_class,
    certify_decision,
    certify_mean,
    certify_quantile,
)
from gradood.attacks import AttackedScores, Expectation, apgd, attack_score, max_confidence
from gradood.data import embedded_classifier, embedded_images
from gradood.detectors.threshold import conservative_threshold
from gradood.smoothing.inference import prepared

ALPHA, BETA = 1e-3, 1e-4
#: Certified radii are attacked at this share of them: rounding must not decide.
INSIDE = 1 - 1e-6
CONTROL = 10.0  # beyond what any certificate of so many samples can reach
ANOMALIES = ("mnist", "animals", "glyphs", "photos", "digits")
RESULTS = Path(__file__).parent / "results"


class Row(NamedTuple):
    """One claim about one input, attacked at ``reach`` times its radius."""

    part: str
    claim: str
    reach: float
    picture: int
    radius: float
    broken: bool
    p_value: float


class Budget(NamedTuple):
    sigma: float
    samples: int
    pictures: int
    chunk: int
    restarts: int
    steps: int
    noise: int
    batch_size: int


BUDGETS = {
    "class": Budget(0.05, 500, 500, 50, 10, 100, 2, 50),
    "confidence": Budget(0.05, 500, 500, 50, 10, 100, 2, 25),
    "gradient": Budget(0.05, 500, 50, 10, 10, 100, 2, 5),
}
#: Every fifth picture is attacked again at ``CONTROL`` times the radius, with one restart.
EVERY = 5
#: Norms of fewer parameters are cheaper to differentiate twice.
PARAMETERS = ["stage3.0.conv2.*", "stage3.0.norm2.*", "linear.*"]


def part_class(budget: Budget, first: int, work: Path) -> Iterator[Row]:
    """Classes of the embedded classifier, folded, in bfloat16: that is what is certified."""
    fast = {"dtype": "bfloat16", "channels_last": True, "fold_batch_norm": True}
    smoothing = Smoothing(sigma=budget.sigma, n=budget.samples, alpha=ALPHA, **fast)
    ids = range(first, first + budget.chunk)
    model, x = embedded_classifier(), embedded_images("fashion-mnist")[ids.start : ids.stop]
    certificates = certify_class(model, x, settings=smoothing, ids=ids)
    kept = (~certificates.abstained).nonzero().flatten()
    fresh = Smoothing(**{**vars(smoothing), "seed": 1})
    run = AsCertified(prepared(model, smoothing)).eval()
    for reach, rows, restarts in _reaches(kept, budget):
        labels, radii = certificates.label[rows], certificates.radius[rows]
        moved = apgd(
            run,
            x[rows],
            labels=labels,
            epsilon=radii * reach,
            norm="l2",
            loss="probability",
            steps=budget.steps,
            restarts=restarts,
            expectation=Expectation(budget.sigma, budget.noise),
            limits=None,
            seed=first,
            batch_size=budget.batch_size,
            state=work / f"class-{first}-{reach:g}.safetensors",
        ).images
        again = certify_class(model, moved, settings=fresh, ids=(rows + first).tolist())
        votes = [r["counts"] for r in again.evidence.rows]
        for row, label, radius, count in zip(rows, labels, radii, votes, strict=True):
            own, other = count[label], max(n for c, n in enumerate(count) if c != label)
            # If the label is at least as probable as each of the others, which are chosen here.
            p = min(1.0, len(count) * binom.sf(other - 1, own + other, 0.5))
            yield Row(
                "class", "class", reach, first + int(row), float(radius), bool(p < BETA), float(p)
            )


def part_confidence(budget: Budget, first: int, work: Path) -> Iterator[Row]:
    """One minus the maximal softmax, of the same network: mean, median and decision."""
    settings = Smoothing(sigma=0.1, dtype="bfloat16", channels_last=True, fold_batch_norm=True)
    confidence = max_confidence(AsCertified(prepared(embedded_classifier(), settings)).eval())
    yield from _claims("confidence", lambda z: 1 - confidence(z), True, budget, first, work)


def part_gradient(budget: Budget, first: int, work: Path) -> Iterator[Row]:
    """The median of a detector on gradient norms, fitted on noisy pictures, and its decision."""
    train = embedded_images("fashion-mnist-train")
    noise = torch.randn(train.shape, generator=torch.Generator().manual_seed(0))
    detector = GradientMahalanobis(embedded_classifier(), parameters=PARAMETERS)
    detector.fit(train + budget.sigma * noise)
    yield from _claims("gradient", detector, False, budget, first, work)


def _claims(
    part: str, score: object, bounded: bool, budget: Budget, first: int, work: Path
) -> Iterator[Row]:
    """Claims at radius sigma: half of the pictures normal and attacked upwards, half not."""
    half, each = budget.chunk // 2, budget.chunk // 2 // len(ANOMALIES)
    normal, at = embedded_images("fashion-mnist"), first // 2
    some = (embedded_images(name)[at // len(ANOMALIES) :][:each] for name in ANOMALIES)
    x = torch.cat([normal[at : at + half], *some])
    ids = range(first, first + budget.chunk)
    smoothing = Smoothing(sigma=budget.sigma, n=budget.samples, alpha=ALPHA)
    radius = budget.sigma
    own = Smoothing(**{**vars(smoothing), "n": 101, "alpha": 0.1, "seed": 7})
    calibration = certify_quantile(score, normal[-40:], settings=own).upper[:, 0]
    threshold = conservative_threshold(calibration, 0.1)
    quantile = certify_quantile(score, x, settings=smoothing, radius=radius, ids=ids)
    decision = certify_decision(score, x, settings=smoothing, threshold=threshold, ids=ids)
    mean = certify_mean(score, x, settings=smoothing, radius=radius, ids=ids) if bounded else None
    evaluate = score if callable(score) else score.score
    for reach, rows, restarts in _reaches(torch.arange(len(x)), budget):
        state = work / f"{part}-{first}"
        moved = _attacked(score, x, rows, half, radius * reach, restarts, budget, first, state)
        for row, point in zip(rows.tolist(), moved, strict=True):
            up = row < half
            fresh = _fresh(evaluate, point, budget, first + row)
            bound = (quantile.upper if up else quantile.lower)[row, 0]
            tests = {"median": _median_beyond(fresh, float(bound), up)}
            if mean is not None:
                bound = (mean.upper if up else mean.lower)[row, 0]
                tests["mean"] = _mean_beyond(fresh, float(bound), up)
            if decision.decision[row] == (-1 if up else 1) and decision.radius[row] >= radius:
                tests["decision"] = _median_beyond(fresh, threshold, up)
            for claim, p in tests.items():
                yield Row(part, claim, reach, first + row, radius, p < BETA, p)


def _reaches(rows: Tensor, budget: Budget) -> Iterator[tuple[float, Tensor, int]]:
    """What is attacked how hard: all, then some of them as control."""
    yield INSIDE, rows, budget.restarts
    yield CONTROL, rows[::EVERY], 1


def _attacked(
    score: object,
    x: Tensor,
    rows: Tensor,
    half: int,
    epsilon: float,
    restarts: int,
    budget: Budget,
    seed: int,
    state: Path,
) -> Tensor:
    """Points of the balls where normal pictures score high, and anomalous ones low."""
    parts = []
    for direction, chosen in (("up", rows[rows < half]), ("down", rows[rows >= half])):
        found: AttackedScores = attack_score(
            score,
            x[chosen],
            epsilon=epsilon,
            norm="l2",
            direction=direction,
            steps=budget.steps,
            restarts=restarts,
            expectation=Expectation(budget.sigma, budget.noise),
            limits=None,
            seed=seed,
            batch_size=budget.batch_size,
            state=state.with_name(f"{state.name}-{direction}-{epsilon:.4f}.safetensors"),
        )
        parts.append(found.images)
    return torch.cat(parts)


@torch.no_grad()
def _fresh(evaluate: Callable[[Tensor], Tensor], point: Tensor, budget: Budget, row: int) -> Tensor:
    """float64 ``[samples]``, by a generator that certificates do not use."""
    generator = torch.Generator().manual_seed(10_000 + row)
    noise = torch.randn((budget.samples, *point.shape), generator=generator)
    parts = (point + budget.sigma * noise).split(100)
    return torch.cat([evaluate(part).double() for part in parts])


def _median_beyond(scores: Tensor, bound: float, up: bool) -> float:
    """p of "the median is not above (not below) the bound"."""
    beyond = int((scores > bound).sum() if up else (scores < bound).sum())
    return float(binom.sf(beyond - 1, len(scores), 0.5))


def _mean_beyond(scores: Tensor, bound: float, up: bool) -> float:
    """p of "the mean is not above (not below) the bound", by Hoeffding's ``exp(-n kl)``."""
    q, p = (float(scores.mean()), bound) if up else (1 - float(scores.mean()), 1 - bound)
    if q <= p:
        return 1.0
    if p <= 0:
        return 0.0
    rest = (1 - q) * np.log((1 - q) / (1 - p)) if q < 1 else 0.0
    return float(np.exp(-len(scores) * (q * np.log(q / p) + rest)))


class AsCertified(torch.nn.Module):
    """The prepared model, given what certificates give it: bfloat16, channels last."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.bfloat16().contiguous(memory_format=torch.channels_last)).float()


def report(rows: list[Row]) -> str:
    lines = [
        "# Attacks on certificates",
        "",
        "Made by `python benchmarks/break_certificates.py` with `class`, `confidence`, `gradient` "
        f"and `report`; every claim is in `break_certificates.csv`. alpha = {ALPHA} each.",
        "",
        *(
            f"* {name}: sigma {b.sigma}, {b.samples} samples; {b.restarts} restarts x {b.steps} "
            f"steps x {b.noise} noisy copies of "
            f"{len({r.picture for r in rows if r.part == name})} of {b.pictures} pictures."
            for name, b in BUDGETS.items()
        ),
        "",
        "`class` is the embedded classifier, `confidence` one minus its maximal softmax (both with "
        "batch norm folded, in bfloat16: that is what is certified), `gradient` "
        f"`GradientMahalanobis` on the norms of {', '.join(PARAMETERS)}. Classes are attacked at "
        "(1 - 1e-6) of their own certified radius, scores at as much of sigma: normal pictures "
        "upwards, anomalous ones downwards. Broken: a test on fresh noise at the attacked point "
        f"refutes the claim at level {BETA}. "
        "p: probability of as many broken claims or more, if each is false "
        "with probability alpha, and refuted though true with that level. Control: every fifth "
        f"picture attacked at {CONTROL:g} times the radius, with one restart.",
        "",
        "| certificate of | claim | radius, mean | claims | broken | p | control: broken |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for part, claim in dict.fromkeys((row.part, row.claim) for row in rows):
        group = [row for row in rows if (row.part, row.claim) == (part, claim)]
        inside = [row for row in group if row.reach < 1]
        beyond = [row for row in group if row.reach > 1]
        broken = sum(row.broken for row in inside)
        p = binom.sf(broken - 1, len(inside), ALPHA + BETA)
        radius = np.mean([row.radius for row in inside])
        lines.append(
            f"| {part} | {claim} | {radius:.3f} | {len(inside)} | {broken} | {p:.2g} | "
            f"{sum(row.broken for row in beyond)} of {len(beyond)} |"
        )
    return "\n".join(lines) + "\n"


PARTS = {"class": part_class, "confidence": part_confidence, "gradient": part_gradient}


def run(name: str, budget: Budget, work: Path) -> None:
    """All chunks that are not done yet."""
    for first in range(0, budget.pictures, budget.chunk):
        done = work / f"{name}-{first}.json"
        if not done.exists():
            rows = [row._asdict() for row in PARTS[name](budget, first, work)]
            done.write_text(json.dumps(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*PARTS, "report"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.what != "report":
        run(arguments.what, BUDGETS[arguments.what], arguments.work)
        return
    chunks = [
        arguments.work / f"{name}-{first}.json"
        for name, budget in BUDGETS.items()
        for first in range(0, budget.pictures, budget.chunk)
    ]
    rows = [Row(**r) for file in chunks if file.exists() for r in json.loads(file.read_text())]
    with (arguments.out / "break_certificates.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)
    (arguments.out / "break_certificates.md").write_text(report(rows))


if __name__ == "__main__":
    main()
