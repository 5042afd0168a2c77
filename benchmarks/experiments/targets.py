"""What the specification asks for, and what was reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.experiments.results import ADVERSARIAL, FAST, FORWARD, Results, table
from benchmarks.experiments.rows import Row

#: The attacks that the targets were set with; the others are the first paper's.
SEVEN = (
    *("FGSM 8/255", "FGSM 25/255", "BIM 8/255", "PGD 8/255", "PGD 25/255"),
    *("DeepFool", "C&W"),
)


class Demand(NamedTuple):
    """A row of the specification's targets: where it is found, and its bounds."""

    what: str
    part: str
    detector: str
    metric: str
    must: float
    ambition: float


DEMANDS = (
    Demand("paper's, same set, AUROC", "supervised", "all-hot, same", "auroc", 99.5, 99.9),
    Demand("paper's, set left out, AUROC", "supervised", "all-hot, left out", "auroc", 97.5, 98.5),
    Demand(
        *("paper's, same attack, all-hot", "supervised attacks", "all-hot, same"),
        *("auroc", 94, 95),
    ),
    Demand(
        *("paper's, same attack, all-hot + CE-uniform", "supervised attacks"),
        *("all-hot + CE-uniform, same", "auroc", 98.5, 99.3),
    ),
    Demand(
        *("paper's, attack left out", "supervised attacks", "all-hot + CE-uniform, left out"),
        *("auroc", 96, 97.6),
    ),
    Demand("no anomalies, no backward pass, AUROC", "sets", FORWARD, "auroc", 98.5, 99.2),
    Demand("no anomalies, one backward pass, AUROC", "sets", FAST, "auroc", 98.5, 99.2),
    Demand("no anomalies, one backward pass, FPR95", "sets", FAST, "fpr95", 6.5, 3.5),
    Demand("no anomalies, attacks", "attacks", ADVERSARIAL, "auroc", 96, 97.5),
    Demand('near-anomalous classes, "fast"', "near", FAST, "auroc", 91, 93),
)


def targets(rows: Sequence[Row]) -> str:
    """What the specification asks for, and what was reached."""
    lines = []
    for demand in DEMANDS:
        found = Results(rows, demand.part)
        if demand.part.endswith("attacks"):
            seven = [name for name in found.sets if name in SEVEN]
            lines.append(_reached(demand, found, seven, ", mean of seven attacks"))
            lines.append(_reached(demand, found, found.sets, ", mean of all attacks"))
        else:
            lines.append(_reached(demand, found, found.sets, ""))
    return table(["", "must", "ambition", "reached", "must met", "ambition met", "runs"], lines)


def _reached(demand: Demand, found: Results, sets: Sequence[str], which: str) -> list[str]:
    low, bounds = demand.metric == "fpr95", demand[-2:]
    mean = found.mean(demand.detector, demand.metric, sets)
    if mean is None:
        reached, verdicts = "not measured", ["–", "–"]
    else:
        reached = found.cell(demand.detector, (demand.metric,), sets)
        met = [mean <= bound if low else mean >= bound for bound in bounds]
        verdicts = ["yes" if one else "no" for one in met]
    signed = [f"{'≤' if low else '≥'} {bound:g}" for bound in bounds]
    return [demand.what + which, *signed, reached, *verdicts, str(len(found.runs))]
