"""The figure of a table: times of every method relative to an ordinary forward + backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.measuring.records import Row
from benchmarks.measuring.report import setting
from gradood.errors import InputError

_OURS, _OTHERS, _TEXT = "#d1495b", "#9aa5b1", "#333333"


def draw(rows: Sequence[Row], path: Path) -> None:
    """One panel a workload (columns) and setting (lines); the suffix chooses the format.

    A hatched bar's norms are incomplete or wrong.

    Raises:
        InputError: The format is unknown or the file cannot be written.
    """
    rows = [r for r in rows if r.ratio_forward_backward is not None]
    workloads = list(dict.fromkeys((r.model, r.batch) for r in rows))
    settings = list(dict.fromkeys(map(setting, rows)))
    figure = Figure(
        figsize=(0.8 + 2.8 * len(workloads), 0.5 + 3.0 * len(settings)), layout="constrained"
    )
    panels = figure.subplots(len(settings), len(workloads), squeeze=False)
    for line, name in enumerate(settings):
        for column, (model, batch) in enumerate(workloads):
            chosen = [r for r in rows if (r.model, r.batch, setting(r)) == (model, batch, name)]
            _panel(panels[line][column], chosen, labelled=column == 0)
            panels[line][column].set_title(f"{model}, {batch}\n{name}", fontsize=9, color=_TEXT)
    figure.supxlabel(
        "time / (forward + backward); hatched: norms missing or wrong", fontsize=9, color=_TEXT
    )
    try:
        with matplotlib.rc_context({"svg.hashsalt": "gradood", "svg.fonttype": "none"}):
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})
    except (OSError, ValueError) as error:
        raise InputError(f"cannot draw to {path}: {error}") from error


def _panel(panel: Any, rows: Sequence[Row], labelled: bool) -> None:
    ratios = [r.ratio_forward_backward or 0.0 for r in rows]
    colours = [_OURS if r.package == "gradood" else _OTHERS for r in rows]
    bars = panel.barh(range(len(rows)), ratios, color=colours)
    for bar, row, ratio in zip(bars, rows, ratios, strict=True):
        if row.missing or row.wrong:
            bar.set(hatch="////", edgecolor="white")
        panel.annotate(
            f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}",
            (ratio, bar.get_y() + bar.get_height() / 2),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=_TEXT,
        )
    panel.axvline(1.0, color=_TEXT, linewidth=0.8, linestyle=":", zorder=0)
    panel.set_xscale("log")
    ticks = [2.0**k for k in range(-2, 8) if 2.0**k <= 1.8 * max([*ratios, 1.0])]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.set_xlim(0.2, 1.8 * max([*ratios, 1.0]))
    panel.set_yticks(range(len(rows)), [r.method if labelled else "" for r in rows], fontsize=8)
    panel.invert_yaxis()
    panel.tick_params(axis="x", labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)
