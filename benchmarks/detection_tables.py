"""The Markdown tables of ``detection.py``: mean and spread over seeds, in percent."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from detection import Row

MAIN = "all-hot"
REAL = ("mnist", "animals", "digits", "glyphs", "photos")
METRICS = {"AUROC": "auroc", "AUPR": "aupr_anomalous", "FPR95": "fpr95"}
NOISE_ONLY = "paper's, noise only"
TRAINED_ON = "anomalies trained on"
#: Detector -> the anomalies it was trained on.
ANOMALIES = {
    "paper's, same set": "other half of the same set",
    "paper's, set left out": "nine other sets",
    NOISE_ONLY: "uniform and Gaussian noise",
}


class Results:
    """Rows by detector, gradients, metric and set."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.seeds = sorted({row.seed for row in rows})
        self.detectors = list(dict.fromkeys((row.detector, row.gradients) for row in rows))
        self.sets = tuple(dict.fromkeys(row.anomalous_set for row in rows))
        self.counts = {row.anomalous_set: row.metrics.count_anomalous for row in rows}
        self.count_normal = rows[0].metrics.count_normal
        self._by_key = {
            (row.detector, row.gradients, row.anomalous_set, row.seed): row.metrics for row in rows
        }

    def per_seed(self, detector: tuple[str, str], metric: str, sets: Sequence[str]) -> list[float]:
        """For every seed the mean over ``sets``, in percent."""
        name, gradients = detector
        found = [[self._by_key[name, gradients, one, seed] for one in sets] for seed in self.seeds]
        return [100 * fmean(getattr(one, METRICS[metric]) for one in row) for row in found]

    def mean(self, detector: tuple[str, str], metric: str, sets: Sequence[str]) -> float:
        return fmean(self.per_seed(detector, metric, sets))

    def cell(self, detector: tuple[str, str], metric: str, sets: Sequence[str]) -> str:
        """``mean ± standard deviation`` over the seeds."""
        values = self.per_seed(detector, metric, sets)
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        return f"{fmean(values):.1f}{spread}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---" if name == TRAINED_ON else "---:" for name in header[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def markdown(rows: Sequence[Row], speed: dict[str, float], *, small: bool) -> str:
    """The whole page."""
    results = Results(rows)
    main = [one for one in results.detectors if one[1] in (MAIN, "none")]
    data = "the pictures inside the package (a quick look)" if small else "Fashion-MNIST"
    parts = [
        f"# Detection on {data}",
        introduction(results, small),
        f"## Mean of the {len(results.sets)} sets, all-hot norms",
        overview(results, main),
        remarks(results),
        "## Other labels",
        "Mean AUROC / FPR95 of all sets by what the norms are taken of: binary cross-entropy to "
        "all classes at once, cross-entropy to the uniform distribution, or both, twice as many "
        "features from two backward passes.",
        labels(results),
        *(part for metric in METRICS for part in (f"## {metric}", per_set(results, main, metric))),
        "## Speed",
        speed_text(speed),
    ]
    return "\n\n".join(parts) + "\n"


def introduction(results: Results, small: bool) -> str:
    seeds = len(results.seeds)
    command = f"python benchmarks/detection.py{' --small' * small} --seeds {seeds}"
    counts = ", ".join(f"{name} {count}" for name, count in results.counts.items())
    return (
        f"Made by `OMP_NUM_THREADS=1 {command}`. Percent, anomalous is the positive class; mean ± "
        f"standard deviation over {seeds} seed{'s' * (seeds > 1)}, which draw the sets, their "
        "halves and the detectors' initial weights. The classifier is one checkpoint, the "
        'committed one, so the spread says nothing about other classifiers. "The paper\'s" is '
        "`ConfoundingDetector`. Detectors without anomalies fit on training pictures alone. "
        f"Scored: {results.count_normal} normal pictures and the half of each set that nothing was "
        f"trained on ({counts} in the last seed). Glyphs are halved by font family and photos by "
        "photograph: few groups. The distorted sets are made from other pictures in each half; "
        "some of these are scored, undistorted, as normal. AUPR depends on the share of anomalous "
        "pictures, about one in six here."
    )


def overview(results: Results, detectors: Sequence[tuple[str, str]]) -> str:
    header = ["detector", TRAINED_ON, *METRICS, "AUROC, real sets"]
    lines = [
        [
            detector[0],
            ANOMALIES.get(detector[0], "none"),
            *(results.cell(detector, metric, results.sets) for metric in METRICS),
            results.cell(detector, "AUROC", REAL),
        ]
        for detector in detectors
    ]
    return table(header, lines)


def remarks(results: Results) -> str:
    """What a reader must know; the part on noise says what was measured."""
    by_set = {name: results.mean((NOISE_ONLY, MAIN), "AUROC", (name,)) for name in results.sets}
    below = [f"{name} ({value:.1f})" for name, value in by_set.items() if value < 50]
    noise = f"below chance on {', '.join(below)}" if below else "above chance on every set"
    return (
        f"Real sets: {', '.join(REAL)}. Trained on noise alone, the paper's detector is {noise}: "
        'noise is no substitute for real anomalies. "Left out" leaves relatives in: the two '
        "kinds of noise resemble one another, and so do MNIST and digits. Nothing was "
        "tuned in making these tables, but the detectors' design (logarithms, whitening, the size "
        "of the paper's network) was settled earlier with sets of the same kinds in view."
    )


def labels(results: Results) -> str:
    kinds = list(dict.fromkeys(kind for _, kind in results.detectors if kind != "none"))
    names = list(dict.fromkeys(name for name, kind in results.detectors if kind != "none"))

    def cell(name: str, kind: str) -> str:
        return " / ".join(
            results.cell((name, kind), metric, results.sets) for metric in ("AUROC", "FPR95")
        )

    return table(["detector", *kinds], [[name, *(cell(name, k) for k in kinds)] for name in names])


def per_set(results: Results, detectors: Sequence[tuple[str, str]], metric: str) -> str:
    groups: dict[str, Sequence[str]] = {name: (name,) for name in results.sets}
    groups["**mean**"] = results.sets
    groups["mean of the real sets"] = REAL
    lines = [
        [name, *(results.cell(one, metric, sets) for one in detectors)]
        for name, sets in groups.items()
    ]
    return table(["set", *(name for name, _ in detectors)], lines)


def speed_text(speed: dict[str, float]) -> str:
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in speed.items())
    return (
        f"Images a second: {rates} (best of several rounds on {torch.get_num_threads()} CPU "
        f"thread(s), PyTorch {torch.__version__}, Python {platform.python_version()}). The only "
        "figures here that differ from run to run."
    )


def progress(rows: Sequence[Row], seed: int, gradients: str) -> str:
    """One line with the mean AUROC of every detector, so that a long run shows how far it is."""
    results = Results([row for row in rows if (row.seed, row.gradients) == (seed, gradients)])
    means = [
        f"{one[0]} {fmean(results.per_seed(one, 'AUROC', results.sets)):.2f}"
        for one in results.detectors
    ]
    return f"seed {seed}, {gradients} norms, mean AUROC: {', '.join(means)}"
