"""The page and the figure of ``distro.py``, from its two CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

METRICS = ("auroc", "aupr_anomalous", "fpr95")
KINDS = ("clean", "adversarial", "guaranteed")
NORMS = {"linf": "l∞, r = 0.01", "l2": "l2, r = 0.25"}
SHORT = {"clean": "", "adversarial": "A", "guaranteed": "G"}
HEADS = {"auroc": "AUC", "aupr_anomalous": "AUPR", "fpr95": "FPR"}

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def mean(rows: list[Row], metric: str, **wanted: str) -> float:
    """Over the rows that have these values."""
    return fmean(
        float(row[metric])
        for row in rows
        if all(row[key] == value for key, value in wanted.items())
    )


def table(head: list[str], body: Iterable[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"| --- |{' ---: |' * (len(head) - 1)}",
        *(f"| {' | '.join(line)} |" for line in body),
        "",
    ]


def means(rows: list[Row], norm: str, models: list[str]) -> list[str]:
    """Every metric, clean, adversarial and guaranteed, over all sets."""
    head = ["model", *(f"{SHORT[kind]}{HEADS[m]}" for m in METRICS for kind in KINDS)]
    return table(
        head,
        (
            [
                model,
                *(
                    f"{100 * mean(rows, metric, model=model, norm=norm, kind=kind):.1f}"
                    for metric in METRICS
                    for kind in KINDS
                ),
            ]
            for model in models
        ),
    )


def by_set(rows: list[Row], norm: str, models: list[str]) -> list[str]:
    """AUROC clean / adversarial / guaranteed, a line a set."""

    def cell(model: str, name: str) -> str:
        values = (
            mean(rows, "auroc", model=model, norm=norm, kind=kind, set=name) for kind in KINDS
        )
        return " / ".join(f"{100 * value:.0f}" for value in values)

    names = unique(row["set"] for row in rows)
    body = ([name, *(cell(model, name) for model in models)] for name in names)
    return table(["set", *models], body)


INTRODUCTION = """# Clean, guaranteed and adversarial detection, measured

Made by `OMP_NUM_THREADS=1 python benchmarks/distro.py`; every number is in `distro.csv` and
`distro_normal.csv`. The score is one minus the model's largest probability. Normal: the first
{normal} pictures of the second half of the Fashion-MNIST test set; anomalous: {anomalous}
pictures of the second half of each of ten sets, so single cells are coarse. *Guaranteed* (G): no
perturbation of the anomalous pictures within the radius makes the metric worse, with probability
0.99 for the smoothed models, and with certainty where interval bounds alone carry it.
*Adversarial* (A): APGD on the confidence of the model: {steps} steps with {restarts} restarts
where it is deterministic; where it is not, {noisy_steps} steps through the denoiser and {noises}
fixed noises, judged by {afresh} fresh ones, a weak attack. FPR: false positives at 95 % true
positives, lower is better. All in percent.

* plain: the committed classifier; no bound is known for it, so G = 0. outlier-exposed, where its
  checkpoint was there: the same, fine-tuned with outliers of none of the ten sets; no bound either.
* discriminator: the classifier with the discriminator that was trained with interval bounds (l∞).
* smoothed, denoised: mean confidence of the classifier under {samples} noises of sigma {sigma},
  without and with the denoiser; the l2 guarantee is of this mean, and serves the l∞ ball inside
  l2 0.28.
* joint: denoised classifier and discriminator; the discriminator sees the input itself. Its l∞
  guarantee combines both bounds; its l2 guarantee is the denoised classifier's (the interval
  bound of the box around an l2 ball of 0.25 adds what it can).
* joint, slight noise: the same with sigma {slight}, which costs hardly any accuracy; its l∞
  guarantee is the discriminator's, and certificates at l2 0.25 are out of its reach.

The accuracy is of the first {accuracy} normal pictures (64 votes each under noise), certified
accuracy of the first {normal}, at l2 0.25.
"""


def write_page(folder: Path, facts: Mapping[str, object]) -> None:
    """``distro.md`` and ``distro.png`` beside the CSV files; facts are the script's constants."""
    rows, on_normal = read(folder / "distro.csv"), read(folder / "distro_normal.csv")
    models = unique(row["model"] for row in rows)
    lines = [INTRODUCTION.format_map(facts)]
    lines += table(
        ["model", "accuracy", "certified accuracy"],
        (
            [r["model"], *(f"{100 * float(r[k]):.1f}" for k in ("accuracy", "certified_accuracy"))]
            for r in on_normal
        ),
    )
    for norm, label in NORMS.items():
        lines += [f"## {label}", "", "Mean of ten sets:", "", *means(rows, norm, models)]
        lines += ["AUROC, clean / adversarial / guaranteed:", "", *by_set(rows, norm, models)]
    lines += ["![Mean AUROC of every model](distro.png)"]
    (folder / "distro.md").write_text("\n".join(lines) + "\n")
    figure(rows, models).savefig(folder / "distro.png", dpi=110, metadata={"Software": None})


def figure(rows: list[Row], models: list[str]) -> Figure:
    """Bars from the guaranteed to the clean mean AUROC, and the adversarial one between them."""
    picture = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (norm, label) in zip(picture.subplots(1, 2, sharey=True), NORMS.items(), strict=True):
        for y, model in enumerate(reversed(models)):
            low, between, high = (
                mean(rows, "auroc", model=model, norm=norm, kind=kind)
                for kind in ("guaranteed", "adversarial", "clean")
            )
            axes.barh(y, high - low, left=low, height=0.5, color="#cfdfe8")
            axes.barh(y, low, height=0.5, color="#2a6f97")
            axes.plot(between, y, "D", color="#d1495b", markersize=6)
        axes.set(xlim=(0, 1), yticks=range(len(models)), yticklabels=models[::-1], title=label)
        axes.axvline(0.5, color="#999999", linewidth=0.8, linestyle="--")
        axes.set_xlabel("mean AUROC: guaranteed (dark), attacked (diamond), clean (end of bar)")
        axes.xaxis.label.set_fontsize(8)
        axes.spines[["top", "right"]].set_visible(False)
    return picture
