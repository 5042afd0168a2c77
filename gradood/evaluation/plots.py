"""Figures of the demo and of guarantees, each as a PNG in a data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor

from gradood.evaluation.curves import Floats, roc_points
from gradood.evaluation.demonstration import (
    DEFAULT,
    DETECTORS,
    ENERGY,
    MAX_SOFTMAX,
    PAPER,
    PAPER_UNSEEN,
    Demonstration,
    SetResult,
)
from gradood.evaluation.guaranteed import Guarantee
from gradood.evaluation.metrics import Metrics

NORMAL, ANOMALOUS = "#2a6f97", "#d1495b"
_LINES = {
    PAPER: ("#d1495b", "-"),
    PAPER_UNSEEN: ("#d1495b", "--"),
    DEFAULT: ("#2a6f97", "-"),
    MAX_SOFTMAX: ("#999999", "--"),
    ENERGY: ("#999999", "-"),
}
_STYLE: dict[str, Any] = {"fontsize": 9, "color": "#333333"}


def score_histograms(sets: Sequence[SetResult], detector: str, threshold: float | None) -> str:
    """One panel a set: densities of normal and anomalous scores, and the threshold."""
    figure, panels = _grid(len(sets))
    for result, panel in zip(sets, panels, strict=False):
        reference = result.normal[detector]
        normal, anomalous = (_squash(s, reference) for s in (reference, result.anomalous[detector]))
        both = np.concatenate([normal, anomalous])
        bins = np.linspace(both.min(), both.max(), 32).tolist()
        panel.hist(normal, bins, density=True, color=NORMAL, alpha=0.6, label="normal")
        panel.hist(anomalous, bins, density=True, color=ANOMALOUS, alpha=0.6, label="anomalous")
        if threshold is not None:
            at = _squash(torch.tensor([threshold]), reference)
            panel.axvline(
                float(at[0]), color="#333333", linewidth=1, linestyle=":", label="threshold"
            )
        panel.set_title(result.name, **_STYLE)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines["left"].set_visible(False)
    panels[0].set_xlabel("more anomalous →", loc="right", **_STYLE)
    _legend(figure, panels, len(sets))
    return _uri(figure)


def roc_curves(sets: Sequence[SetResult]) -> str:
    """One panel a set: a ROC curve for every detector."""
    figure, panels = _grid(len(sets), square=True)
    for result, panel in zip(sets, panels, strict=False):
        for detector in DETECTORS:
            points = roc_points(result.normal[detector], result.anomalous[detector])
            color, dashes = _LINES[detector]
            panel.plot(*points[:2], color=color, linestyle=dashes, linewidth=1.4, label=detector)
        panel.set_title(result.name, **_STYLE)
        panel.set_xticks([0, 0.5, 1])
        panel.set_yticks([0, 0.5, 1])
    panels[0].set_ylabel("true positive rate", **_STYLE)
    panels[0].set_xlabel("false positive rate", **_STYLE)
    _legend(figure, panels, len(sets))
    return _uri(figure)


def reaction_map(result: Demonstration) -> str:
    """Sets down, parameters across: median standardised log norm, normal data is zero."""
    reactions = torch.stack([one.reaction for one in result.sets]).numpy()
    figure = Figure(figsize=(10.5, 1.6 + 0.3 * len(reactions)), layout="constrained")
    panel = figure.subplots()
    # Past six standard deviations, more says nothing more.
    image = panel.imshow(reactions, cmap="RdBu_r", vmin=-6, vmax=6, aspect="auto")
    panel.set_xticks(
        range(len(result.parameters)), list(result.parameters), rotation=90, fontsize=7
    )
    panel.set_yticks(range(len(reactions)), [one.name for one in result.sets], fontsize=9)
    panel.tick_params(length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=panel, pad=0.01, extend="both")
    bar.set_label("standard deviations", **_STYLE)
    bar.outline.set_visible(False)
    return _uri(figure)


def guarantee_curves(guarantee: Guarantee, clean: Metrics | None = None) -> str:
    """Guaranteed AUROC, AUPR and FPR at 95 % TPR against the radius.

    Args:
        guarantee: What ``evaluate_guaranteed`` returned.
        clean: What ``evaluate`` says of the same scores without perturbation: a dotted line.
    """
    figure, panels = _grid(3)
    kinds = [("anomalous inputs move", guarantee.clean_normals, ANOMALOUS, "-")]
    if guarantee.moved_normals is not None:
        kinds.append(("all inputs move", guarantee.moved_normals, NORMAL, "--"))
    order = np.argsort(guarantee.radius)
    names = {"auroc": "AUROC ≥", "aupr_anomalous": "AUPR ≥", "fpr95": "FPR at 95 % TPR ≤"}
    for panel, (name, title) in zip(panels, names.items(), strict=False):
        for label, metrics, color, dashes in kinds:
            line = {"color": color, "linestyle": dashes, "linewidth": 1.4, "label": label}
            panel.plot(guarantee.radius[order], getattr(metrics, name)[order], marker=".", **line)
        if clean is not None:
            at = getattr(clean, name)
            panel.axhline(at, color="#333333", linewidth=1, linestyle=":", label="no perturbation")
        panel.set_title(title, **_STYLE)
        panel.set_ylim(-0.02, 1.02)
    panels[0].set_xlabel("radius, l2", loc="right", **_STYLE)
    _legend(figure, panels, 3)
    return _uri(figure)


def picture(image: Tensor) -> str:
    """A grey image ``[1, H, W]`` in [0, 1]."""
    buffer = io.BytesIO()
    imsave(buffer, image[0].numpy(), cmap="gray", vmin=0, vmax=1, format="png")
    return _data_uri(buffer)


def _squash(scores: Tensor, normal: Tensor) -> Floats:
    """``asinh((s - median) / interquartile range)`` of normal scores: even, then log."""
    low, middle, high = normal.double().quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    centred = (scores.double() - middle) / (high - low).clamp_min(1e-12)
    squashed: Floats = centred.asinh().numpy()
    return squashed


def _grid(count: int, square: bool = False) -> tuple[Figure, list[Any]]:
    rows = -(-(count + 1) // 4)  # one more, for the legend
    figure = Figure(figsize=(10.5, rows * (2.6 if square else 1.9)), layout="constrained")
    panels = list(np.atleast_1d(figure.subplots(rows, 4)).flat)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=7, color="#999999", labelcolor="#666666")
    return figure, panels


def _legend(figure: Figure, panels: list[Any], used: int) -> None:
    for panel in panels[used:]:
        panel.axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    panels[used].legend(handles, labels, loc="center", frameon=False, fontsize=9)


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return _data_uri(buffer)


def _data_uri(buffer: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
