"""The page of ``cifar_certificates``: what its CSV file says of the gradient detector."""

from __future__ import annotations

import csv
from pathlib import Path

HOW = {"denoised": "with the denoiser", "noisy": "without a denoiser"}
SETS = ("normal", "svhn-test", "cifar100-test")
#: Metrics of a set, as the CSV file names them; the radius stands in some.
COLUMNS = ("AUROC of medians", "guaranteed at {0:g}", "decided rightly", "rightly within {0:g}")

PROTOCOL = """Made by `GRADOOD_DATA=FOLDER OMP_NUM_THREADS=1 python -m
benchmarks.cifar_certificates gradient`. The public ResNet-20 and the default `GradientDetector`,
fitted on {fit} training pictures as it sees them when it is smoothed: with noise of sigma
{sigma:g}, and behind the denoiser where there is one. {count} pictures of each set, {samples}
noises each. *AUROC of medians*: of the median score under noise. *Guaranteed*: whatever moves
every anomalous picture by up to {radius:g} in l2, with probability {sure:g}. *Decided rightly*:
the certified decision at a threshold that at most {fpr:.0%} of normal pictures exceed is the
right one; *within*: and stays so in the ball of radius {radius:g}; an input that is not decided
counts as wrong. Attacks on these certificates are in
[`break_certificates.md`](break_certificates.md). The other parts of the command are in
`cifar_certificates.csv` only."""


def latest(path: Path, part: str) -> dict[str, float]:
    """The last value of every metric of a part."""
    with path.open(newline="") as file:
        return {r["metric"]: float(r["value"]) for r in csv.DictReader(file) if r["part"] == part}


def markdown(found: dict[str, float], **facts: float) -> str:
    """The page of the part ``gradient``."""
    columns = [column.format(facts["radius"]) for column in COLUMNS]
    lines = ["# Certificates of the gradient detector, on CIFAR-10", "", "## Where it loses", ""]
    lines += [*_losses(found, columns), "", "## Protocol", "", PROTOCOL.format(**facts), ""]
    lines += [f"| denoiser | set | {' | '.join(columns)} |", "| --- | --- |" + " ---: |" * 4]
    for kind, told in HOW.items():
        for name in SETS:
            values = [found.get(f"{kind}, {name}: {column}") for column in columns]
            cells = ["–" if value is None else f"{100 * value:.1f}" for value in values]
            lines.append(f"| {told} | {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "All in percent."]) + "\n"


def _losses(found: dict[str, float], columns: list[str]) -> list[str]:
    """Every figure that is no better than a guess."""
    clean, guaranteed, decided, within = columns
    below = [
        f"* {told[0].upper()}{told[1:]}, the {what} on {name} is {100 * found[key]:.1f}: chance."
        for kind, told in HOW.items()
        for what, column in (("AUROC of medians", clean), ("guaranteed AUROC", guaranteed))
        for name in SETS
        if found.get(key := f"{kind}, {name}: {column}", 1.0) <= 0.5
    ]
    few = [
        f"* {told[0].upper()}{told[1:]}, {100 * found[key]:.0f} % of {name} are rightly decided "
        f"{'within the radius' if column == within else 'at all'}."
        for kind, told in HOW.items()
        for column in (decided, within)
        for name in SETS
        if found.get(key := f"{kind}, {name}: {column}", 1.0) < 0.5
    ]
    return below + few
