"""The page and the figure of ``distro_study``, from its two CSV files."""

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


READING = """The score is one minus the model's largest probability. *Guaranteed* (G): no
perturbation of the anomalous pictures within the radius makes the metric worse, with probability
0.99 for the smoothed models, and with certainty where interval bounds alone carry it.
*Adversarial* (A): APGD on the confidence of the model, {steps} steps with {restarts} restarts
where it is deterministic; where it is not, {noisy_steps} steps through the denoiser and {noises}
fixed noises, judged by {afresh} fresh ones, a weak attack. FPR: false positives at 95 % true
positives, lower is better. All in percent; single cells are coarse.

* plain: the classifier; no bound is known for it, so G = 0. outlier-exposed: the same, fine-tuned
  with outliers; no bound either.
* discriminator: the classifier with the discriminator that was trained with interval bounds (l∞).
* smoothed, denoised: mean confidence of the classifier under {samples} noises, without and with the
  denoiser; the l2 guarantee is of this mean, and serves the l∞ ball inside an l2 ball.
* joint: denoised classifier and discriminator; the discriminator sees the input itself. Its l∞
  guarantee combines both bounds; its l2 guarantee is the denoised classifier's (the interval
  bound of the box around the l2 ball adds what it can).

Accuracy is of the first {accuracy} normal pictures ({votes} votes each under noise), certified
accuracy of the first {normal}, at the l2 radii named, with up to {certificates} samples.
"""


def losses(rows: list[Row], on_normal: list[Row], models: list[str]) -> list[str]:
    """Where models are worse than the plain one, and where the joint ones guarantee nothing."""
    accuracy = {row["model"]: 100 * float(row["accuracy"]) for row in on_normal}
    found = [
        f"{model} answers {accuracy[models[0]] - value:.1f} points less accurately than "
        f"{models[0]} ({value:.1f} %)."
        for model, value in accuracy.items()
        if value < accuracy[models[0]] - 1
    ]
    for norm, label in NORMS.items():
        clean = {m: mean(rows, "auroc", model=m, norm=norm, kind="clean") for m in models}
        best = max(clean, key=lambda m: clean[m])
        for model in (m for m in models if m.startswith("joint")):
            if norm == "linf" and best != model and clean[best] > clean[model]:
                found.append(
                    f"Without an attack, {model} detects worse than {best}: mean AUROC "
                    f"{100 * clean[model]:.1f} against {100 * clean[best]:.1f}."
                )
            empty = [
                name
                for name in unique(row["set"] for row in rows)
                if mean(rows, "auroc", model=model, norm=norm, kind="guaranteed", set=name) <= 0.5
            ]
            if empty:
                found.append(
                    f"{label}: {model} guarantees no AUROC beyond chance on {', '.join(empty)}."
                )
    return [f"* {line}" for line in found]


def write_page(folder: Path, stem: str, introduction: str, facts: Mapping[str, object]) -> None:
    """``STEM.md`` and ``STEM.png`` beside the CSV files; facts are numbers of samples and steps."""
    rows, on_normal = read(folder / f"{stem}.csv"), read(folder / f"{stem}_normal.csv")
    models = unique(row["model"] for row in rows)
    title, _, rest = introduction.partition("\n\n")
    lines = [title, "", "## Where it loses", "", *losses(rows, on_normal, models), ""]
    lines += ["## Protocol", "", rest, READING.format_map(facts)]
    lines += [f"Every number is in `{stem}.csv` and `{stem}_normal.csv`."]
    if "seconds" in on_normal[0]:
        seconds = sum(float(row["seconds"]) for row in on_normal)
        lines += [f"Time, of all that is kept: {seconds / 60:.0f} minutes of one core."]
    keys = [key for key in on_normal[0] if key.startswith(("accuracy", "certified"))]
    lines += ["", "## Accuracy", ""]
    lines += table(
        ["model", *keys],
        ([row["model"], *(f"{100 * float(row[key]):.1f}" for key in keys)] for row in on_normal),
    )
    for norm, label in NORMS.items():
        count = len(unique(row["set"] for row in rows))
        lines += [f"## {label}", "", f"Mean of {count} sets:", "", *means(rows, norm, models)]
        lines += ["AUROC, clean / adversarial / guaranteed:", "", *by_set(rows, norm, models)]
    lines += [f"![Mean AUROC of every model]({stem}.png)"]
    (folder / f"{stem}.md").write_text("\n".join(lines) + "\n")
    figure(rows, models).savefig(folder / f"{stem}.png", dpi=110, metadata={"Software": None})


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
