"""Can an attack break a certificate? APGD-l2 on the smoothed model, at just under its radius.

    OMP_NUM_THREADS=1 python -m benchmarks.break_certificates PART --work DIR
    python -m benchmarks.break_certificates report --work DIR

PART is class, confidence or gradient (embedded networks), or cifar-class, or cifar-gradient with
nothing, -denoised, -own or -own-denoised behind it, for which GRADOOD_DATA names a folder of
picture sets. "Own" climbs the detector's own score on few pictures; the others what it reads
without a backward pass, on many.

Each part certifies pictures, attacks every one of them, whether normal or anomalous, and tests what
was claimed on fresh noise at the attacked point. It does so chunk by chunk and keeps what it has in
DIR: started again, it goes on where it was interrupted. ``report`` writes
``break_certificates.csv`` and ``.md`` of the chunks that are done, and says how many; parts of
which DIR has none keep their rows.

A claim counts as broken where a test on fresh samples refutes it at level ``BETA``; so of N sound
claims the number broken is at most Binomial(N, alpha + BETA), and p is the probability of as many.
As control, some of the pictures are attacked at ten times the radius, and the same claims tested.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from benchmarks.certified_subjects import ALPHA, PARAMETERS, SUBJECTS, Subject
from gradood import Smoothing, certify_class, certify_decision, certify_mean, certify_quantile
from gradood.attacks import Expectation, apgd, attack_score
from gradood.detectors.threshold import conservative_threshold

BETA = 1e-4
#: Certified radii are attacked at this share of them: rounding must not decide.
INSIDE = 1 - 1e-6
CONTROL = 10.0  # beyond what any certificate of so many samples can reach
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
    "cifar-class": Budget(0.12, 200, 500, 25, 2, 20, 1, 25),
    "cifar-gradient": Budget(0.12, 64, 500, 100, 10, 20, 1, 50),
    "cifar-gradient-denoised": Budget(0.12, 64, 500, 100, 4, 20, 1, 50),
    "cifar-gradient-own": Budget(0.12, 64, 40, 40, 2, 20, 1, 20),
    "cifar-gradient-own-denoised": Budget(0.12, 64, 40, 40, 2, 20, 1, 20),
}
#: Every fifth picture is attacked again at ``CONTROL`` times the radius, with one restart.
EVERY = 5


def class_claims(
    part: str, subject: Subject, budget: Budget, first: int, work: Path
) -> Iterator[Row]:
    """The class of every normal picture that is certified, attacked within its own radius."""
    ids = range(first, first + budget.chunk)
    x, smoothing = subject.normal[ids.start : ids.stop], subject.smoothing
    certificates = certify_class(subject.certified, x, smoothing, ids=ids)
    kept = (~certificates.abstained).nonzero().flatten()
    fresh = Smoothing(**{**vars(smoothing), "seed": 1})
    for reach, rows, restarts in _reaches(kept, budget):
        labels, radii = certificates.label[rows], certificates.radius[rows]
        moved = apgd(
            subject.attacked,
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
            state=work / f"{part}-{first}-{reach:g}.safetensors",
        ).images
        again = certify_class(subject.certified, moved, fresh, ids=(rows + first).tolist())
        votes = [r["counts"] for r in again.evidence.rows]
        for row, label, radius, count in zip(rows, labels, radii, votes, strict=True):
            own, other = count[label], max(n for c, n in enumerate(count) if c != label)
            # If the label is at least as probable as each of the others, which are chosen here.
            p = min(1.0, len(count) * binom.sf(other - 1, own + other, 0.5))
            yield Row(
                part, "class", reach, first + int(row), float(radius), bool(p < BETA), float(p)
            )


def score_claims(
    part: str, subject: Subject, budget: Budget, first: int, work: Path
) -> Iterator[Row]:
    """Claims at radius sigma: half of the pictures normal and attacked upwards, half not."""
    sets, half, at = subject.anomalies, budget.chunk // 2, first // 2
    each = half // len(sets)
    some = (pictures[at // len(sets) :][:each] for pictures in sets)
    x = torch.cat([subject.normal[at : at + half], *some])
    ids = range(first, first + len(x))
    score, smoothing, radius = subject.certified, subject.smoothing, budget.sigma
    own = Smoothing(**{**vars(smoothing), "n": 101, "alpha": 0.1, "seed": 7})
    kept = work / f"{part}-calibration"
    calibration = certify_quantile(score, subject.normal[-40:], own, state=kept).upper[:, 0]
    threshold = conservative_threshold(calibration, 0.1)
    quantile = certify_quantile(score, x, smoothing, radius=radius, ids=ids)
    decision = certify_decision(score, x, smoothing, threshold=threshold, ids=ids)
    mean = None
    if subject.bounded:
        mean = certify_mean(score, x, smoothing, radius=radius, ids=ids)
    for reach, rows, restarts in _reaches(torch.arange(len(x)), budget):
        state = work / f"{part}-{first}"
        moved = _attacked(subject, x, rows, half, radius * reach, restarts, budget, first, state)
        for row, point in zip(rows.tolist(), moved, strict=True):
            up = row < half
            fresh = _fresh(subject, point, budget, first + row)
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
    subject: Subject,
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
        found = attack_score(
            subject.attacked,
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
def _fresh(subject: Subject, point: Tensor, budget: Budget, row: int) -> Tensor:
    """float64 ``[samples]``, by a generator that certificates do not use."""
    generator = torch.Generator().manual_seed(10_000 + row)
    noise = torch.randn((budget.samples, *point.shape), generator=generator)
    parts = (point + budget.sigma * noise).split(100)
    return torch.cat([subject.evaluate(part).double() for part in parts])


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


#: What is certified, by part.
TOLD = {
    "class": "the embedded classifier, certified with batch norm folded and in bfloat16",
    "confidence": "one minus its maximal softmax, in the same way",
    "gradient": f"`GradientMahalanobis` on its norms of {', '.join(PARAMETERS)}",
    "cifar-class": "a public ResNet-20 after an earlier, shorter trained denoiser, in bfloat16",
    "cifar-gradient": "the default gradient detector on that network, without the denoiser; what "
    "is climbed is its score without the norms, in bfloat16",
    "cifar-gradient-denoised": "the same with the denoiser",
    "cifar-gradient-own": "as cifar-gradient; what is climbed is its own score, norms and all",
    "cifar-gradient-own-denoised": "the same with the denoiser",
}


def report(rows: list[Row]) -> str:
    parts = list(dict.fromkeys(row.part for row in rows))
    missing = [name for name in BUDGETS if name not in parts]
    lines = [
        "# Attacks on certificates",
        "",
        f"Made by `python -m benchmarks.break_certificates` with {', '.join(parts)} and then "
        f"`report`; every claim is in `break_certificates.csv`. alpha = {ALPHA} each.",
        *([f"Not run: {', '.join(missing)}."] if missing else []),
        "",
        *(
            f"* {name}, {TOLD[name]}: sigma {b.sigma}, {b.samples} samples; {b.restarts} restarts "
            f"x {b.steps} steps x {b.noise} noisy copies of "
            f"{len({r.picture for r in rows if r.part == name})} of {b.pictures} pictures."
            for name, b in BUDGETS.items()
            if name in parts
        ),
        "",
        "Classes are attacked at (1 - 1e-6) of their own certified radius, scores at as much of "
        "sigma: normal pictures upwards, anomalous ones downwards. Broken: a test on fresh noise "
        f"at the attacked point refutes the claim at level {BETA}. "
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


def run(name: str, budget: Budget, work: Path) -> None:
    """All chunks that are not done yet."""
    subject = SUBJECTS[name](budget.sigma, budget.samples)
    claims = class_claims if name.endswith("class") else score_claims
    for first in range(0, budget.pictures, budget.chunk):
        done = work / f"{name}-{first}.json"
        if not done.exists():
            rows = [row._asdict() for row in claims(name, subject, budget, first, work)]
            done.write_text(json.dumps(rows))


def collected(work: Path, csv_file: Path) -> list[Row]:
    """Rows of every chunk that is done, and those of the file for parts that have none."""
    rows = []
    for name, budget in BUDGETS.items():
        files = [work / f"{name}-{n}.json" for n in range(0, budget.pictures, budget.chunk)]
        found = [Row(**r) for f in files if f.exists() for r in json.loads(f.read_text())]
        rows += found or [row for row in _read(csv_file) if row.part == name]
    return rows


def write(rows: list[Row], path: Path) -> None:
    """Every claim, a row."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Row(
                *(r["part"], r["claim"], float(r["reach"]), int(r["picture"]), float(r["radius"])),
                *(r["broken"] == "True", float(r["p_value"])),
            )
            for r in csv.DictReader(file)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*SUBJECTS, "report"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.what != "report":
        run(arguments.what, BUDGETS[arguments.what], arguments.work)
        return
    rows = collected(arguments.work, arguments.out / "break_certificates.csv")
    write(rows, arguments.out / "break_certificates.csv")
    (arguments.out / "break_certificates.md").write_text(report(rows))


if __name__ == "__main__":
    main()
