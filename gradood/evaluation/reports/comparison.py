"""The page of ``gradood evaluate``: normal inputs against sets of anomalous ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradood.arrays import Floats
from gradood.evaluation.curves import pr_points, roc_points
from gradood.evaluation.guaranteed import Guarantee
from gradood.evaluation.metrics import Metrics
from gradood.evaluation.reports import figures
from gradood.evaluation.reports.digest import Digest, ScoredSet
from gradood.evaluation.reports.html import Html, details, facts, soft, table, tag, tiles
from gradood.evaluation.reports.page import Page
from gradood.evaluation.reports.pictures import gallery
from gradood.evaluation.reports.scores import errors

#: Guaranteed metrics and their labels.
_GUARANTEED = {
    "auroc": "AUROC ≥",
    "aupr_anomalous": "AUPR ≥",
    "fpr95": "FPR at 95 % TPR ≤",
}


def comparison_page(
    normal: Sequence[ScoredSet],
    anomalous: Sequence[ScoredSet],
    metrics: Mapping[str, Metrics],
    rows: Sequence[Sequence[str]],
    *,
    guarantees: Mapping[str, Mapping[str, Guarantee]],
    threshold: float | None = None,
    per_second: float | None = None,
    made: Mapping[str, Any] | None = None,
) -> Page:
    """The page; ``rows`` are the table of metrics, ``guarantees`` by set and by what was done."""
    scores = np.concatenate([one.scores for one in normal])
    page = Page(
        "How well do the scores tell anomalous inputs from normal ones?",
        f"{len(scores):,} normal inputs against {len(anomalous)} "
        f"set{'s' * (len(anomalous) > 1)} of anomalous ones; anomalous is positive, and a higher "
        "score means more anomalous.",
    )
    page.add(tiles(_tiles(normal, metrics, per_second)))
    page.section("Metrics", *_metrics(normal, anomalous, rows, threshold))
    page.section(
        "How the scores are distributed",
        soft("On axes that are even around the median of normal scores and logarithmic far away."),
        page.plots(
            figures.score_histogram(scores, one.scores, title=one.name, threshold=threshold)
            for one in anomalous
        ),
    )
    page.section(
        "ROC, and precision and recall",
        soft("At every threshold. Precision depends on how many inputs of each kind there are."),
        page.plots(_curves(scores, anomalous)),
    )
    if any(guarantees.values()):
        page.section("Guarantee against radius", *_guarantees(page, guarantees, metrics))
    page.section("Inputs that stand out", *_extremes(normal, anomalous))
    for one in (*normal, *anomalous):
        if one.digest.skipped:
            page.section(f"Skipped: {one.digest.skipped:,} of {one.name}", errors(one.digest))
    page.section("How this was made", facts(made or {}))
    return page


def _tiles(
    normal: Sequence[ScoredSet], metrics: Mapping[str, Metrics], per_second: float | None
) -> list[tuple[str, str]]:
    every = list(metrics.values())
    mean = "mean " if len(every) > 1 else ""

    def share(name: str) -> str:
        return f"{100 * sum(getattr(one, name) for one in every) / len(every):.1f}"

    found = [
        (share("auroc"), f"{mean}AUROC in %"),
        (share("aupr_anomalous"), f"{mean}AUPR in %, anomalous is positive"),
        (share("fpr95"), f"{mean}false positive rate in % where 95 % are detected"),
    ]
    if alarms := _flagged(one.digest for one in normal):
        found.append((alarms, "of the normal inputs called anomalous"))
    if per_second is not None:
        found.append((f"{per_second:,.0f}", "inputs scored a second, reading included"))
    return found


def _metrics(
    normal: Sequence[ScoredSet],
    anomalous: Sequence[ScoredSet],
    rows: Sequence[Sequence[str]],
    threshold: float | None,
) -> list[Html]:
    decided = [
        (name, f"{sum(d.decided for d in digests):,}", share)
        for name, digests in (
            ("normal", [one.digest for one in normal]),
            *((one.name, [one.digest]) for one in anomalous),
        )
        if (share := _flagged(digests))
    ]
    by = "" if threshold is None else f", which is a score above {threshold:.6g}"
    parts = [table(rows[0], rows[1:], marked=[len(rows) - 2] if rows[-1][0] == "mean" else ())]
    if decided:
        parts += [
            tag("h3", "Decisions"),
            soft(f"By the threshold that the detector was calibrated with{by}."),
            table(("inputs", "number", "called anomalous"), decided),
        ]
    return parts


def _flagged(digests: Any) -> str:
    """The share that is called anomalous, empty where nothing was decided."""
    every: list[Digest] = list(digests)
    decided = sum(one.decided for one in every)
    return f"{sum(one.flagged for one in every) / decided:.1%}" if decided else ""


def _curves(scores: Floats, anomalous: Sequence[ScoredSet]) -> list[figures.Plot]:
    roc = {one.name: roc_points(scores, one.scores).line for one in anomalous}
    precision = {one.name: pr_points(scores, one.scores) for one in anomalous}
    return [figures.roc(roc), figures.precision_recall(precision)]


def _guarantees(
    page: Page,
    guarantees: Mapping[str, Mapping[str, Guarantee]],
    metrics: Mapping[str, Metrics],
) -> list[Html]:
    alpha = next(one.alpha for by in guarantees.values() for one in by.values())
    parts = [
        soft(
            "What no perturbation of the anomalous inputs within an l2 radius can undercut, in "
            "units of the model's input: for the smoothed detector, the median of its score under "
            f"noise. Each bound, at one radius, is false with a probability of at most {alpha:g}. "
            "Dotted: the detector itself without any perturbation, for which nothing is guaranteed."
        )
    ]
    for name, by in guarantees.items():
        plots = (_guarantee(field, by, metrics[name]) for field in _GUARANTEED)
        numbers = (html_table for kind, one in by.items() for html_table in _numbers(kind, one))
        parts += [tag("h3", name), page.plots(plots), details("The numbers", *numbers)]
    return parts


def _guarantee(field: str, by: Mapping[str, Guarantee], clean: Metrics) -> figures.Plot:
    lines = {kind: (one.radius, getattr(one.clean_normals, field)) for kind, one in by.items()}
    return figures.curves(
        "guarantee",
        lines,
        x="l2 radius",
        y=_GUARANTEED[field],
        level=("no perturbation", getattr(clean, field)),
        marker=".",
    )


def _numbers(kind: str, guarantee: Guarantee) -> list[Html]:
    columns = [getattr(guarantee.clean_normals, field) for field in _GUARANTEED]
    rows = [
        (f"{radius:.4g}", *(f"{100 * value:.1f}" for value in values))
        for radius, *values in zip(guarantee.radius, *columns, strict=True)
    ]
    return [soft(f"{kind}, in %"), table(("l2 radius", *_GUARANTEED.values()), rows)]


def _extremes(normal: Sequence[ScoredSet], anomalous: Sequence[ScoredSet]) -> list[Html]:
    parts = [
        soft(
            "Below each input its score, its name and, where the detector reads gradient norms, "
            "the parameters whose norms are furthest from normal, in standard deviations (σ) of "
            "the log norm. Red frame: called anomalous; blue: normal; grey: no decision."
        )
    ]
    for one in normal:
        parts += [tag("h3", f"Normal inputs that look most anomalous: {one.name}")]
        parts += [gallery(one.digest.highest, one.source)]
    for one in anomalous:
        parts += [tag("h3", f"Most anomalous: {one.name}")]
        parts += [gallery(one.digest.highest, one.source)]
        parts += [tag("h3", f"Least anomalous: {one.name}")]
        parts += [gallery(one.digest.lowest, one.source)]
    return parts
