"""The figures of the page: ROC curves, which layer reacts to what, quality against cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.datasets import Suite
from benchmarks.experiments.cost import Cost
from benchmarks.experiments.fitted import UNSUPERVISED
from benchmarks.experiments.observations import Observer
from benchmarks.experiments.results import Results
from benchmarks.experiments.rows import Row
from gradood.detectors.features import Standardiser, log_norms
from gradood.evaluation.curves import roc_points

#: Scores of normal and of anomalous pictures, by set and detector.
Curves = dict[str, dict[str, tuple[Tensor, ...]]]
SHOWN = ('GradientDetector "forward"', 'GradientDetector "fast"', "GradientKNN", "Energy")


def draw(
    observer: Observer, suite: Suite, rows: Sequence[Row], spent: Sequence[Cost], folder: Path
) -> None:
    """Write all figures."""
    _roc(observer, suite).savefig(folder / "experiments_roc.png", dpi=110)
    _layers(observer, suite).savefig(folder / "experiments_layers.png", dpi=110)
    _depth(rows, spent).savefig(folder / "experiments_depth.png", dpi=110)


def _roc(observer: Observer, suite: Suite) -> Figure:
    fitted = {}
    for detector in SHOWN:
        case = UNSUPERVISED[detector]
        norms = observer.norms(suite.fit.pixels, *case.kinds)
        fitted[detector] = case.build(observer.model, 0).fit(norms)
    curves: Curves = {}
    for name, images in suite.anomalous_scored.items():
        for detector, one in fitted.items():
            kinds = UNSUPERVISED[detector].kinds
            curves.setdefault(name, {})[detector] = tuple(
                one.score(observer.norms(these.pixels, *kinds))
                for these in (suite.normal_scored, images)
            )
    return roc_curves(curves)


def roc_curves(curves: Curves) -> Figure:
    """A panel a set, a curve a detector."""
    figure = Figure(figsize=(13, 5.4), layout="constrained")
    panels = figure.subplots(2, (len(curves) + 1) // 2, sharex=True, sharey=True).flat
    for panel, (name, of_set) in zip(panels, curves.items(), strict=False):
        for detector, scores in of_set.items():
            false, true = roc_points(*scores).line
            panel.plot(false, true, label=detector, linewidth=1.2)
        panel.set_xscale("log")
        panel.set_xlim(1e-3, 1)
        panel.set_title(name, fontsize=9)
    figure.axes[0].legend(fontsize=7)
    figure.supxlabel("false positive rate")
    figure.supylabel("true positive rate")
    return figure


def _layers(observer: Observer, suite: Suite) -> Figure:
    fit = observer.norms(suite.fit.pixels, "all-hot")
    standardise = Standardiser.fit(log_norms(fit.values))
    names = [n for n, kept in zip(fit.names, standardise.kept.tolist(), strict=True) if kept]
    sets = suite.anomalous_scored
    medians = torch.stack(
        [
            standardise(log_norms(observer.norms(one.pixels, "all-hot").values)).median(0).values
            for one in sets.values()
        ]
    )
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(medians, cmap="RdBu_r", vmin=-4, vmax=4, aspect="auto")
    axes.set_yticks(range(len(sets)), list(sets), fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    figure.colorbar(image, label="median log norm, standard deviations of normal data")
    return figure


def _depth(rows: Sequence[Row], spent: Sequence[Cost]) -> Figure:
    found = Results(rows, "depth")
    cost = {c.what.removeprefix("norms, "): c.of_step for c in spent}
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    points = [
        (cost[name], found.mean(name, "auroc", found.sets) or 0.0, name)
        for name in found.detectors
        if name in cost
    ]
    axes.plot([p[0] for p in points], [p[1] for p in points], "o-")
    for x, y, name in points:
        axes.annotate(name, (x, y), fontsize=7, xytext=(4, -9), textcoords="offset points")
    axes.set_xlabel("cost, of a forward + backward pass")
    axes.set_ylabel("AUROC, mean of all sets, %")
    return figure
