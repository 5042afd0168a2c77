"""The page on one run of scores: how they are distributed, and which inputs stand out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gradood.data.files.source import Source
from gradood.errors import InputError
from gradood.evaluation.conformal import control_fdr
from gradood.evaluation.reports import figures
from gradood.evaluation.reports.digest import SAMPLE, Digest, Row, histogram_of
from gradood.evaluation.reports.html import Html, beside, facts, html, soft, table, tag, tiles
from gradood.evaluation.reports.page import Page
from gradood.evaluation.reports.pictures import gallery
from gradood.progress import Throughput

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
#: Rates of false calls, and inputs up to which they are controlled: that holds all p-values.
_LEVELS, _MOST = (0.01, 0.05, 0.1, 0.2), 1_000_000


def score_page(
    rows: Callable[[], Iterable[Row]],
    source: Source | None,
    *,
    title: str,
    throughput: Throughput | None = None,
    threshold: float | None = None,
    made: Mapping[str, Any] | None = None,
) -> Page:
    """A page on a finished score file, in memory that does not depend on its length.

    ``rows`` gives the rows of the file from the beginning, twice. Without a source inputs are named
    and not shown, without a throughput nothing was scored in this run.
    """
    digest = Digest()
    for row in rows():
        digest.add(row)
    if not digest.scored:
        raise InputError("there is nothing to report: no input has a score")
    page = Page(
        title,
        "How unusual each input is for the classifier: the higher its score, the more anomalous. "
        "A score is no probability, and its unit is the detector's own.",
    )
    page.add(tiles(_tiles(digest, threshold, throughput)))
    page.section("How the scores are distributed", *_distribution(page, rows, digest, threshold))
    if digest.p_values:
        page.section("p-values", *p_value_parts(page, digest.p_values))
    page.section("The most anomalous inputs", *_extremes(digest, source))
    if throughput is not None:
        before = digest.scored + digest.skipped - throughput.inputs
        page.section("Throughput", *speed(page, throughput, before))
    if digest.skipped:
        page.section(f"Skipped: {digest.skipped:,} inputs", errors(digest))
    none = {} if throughput else {"Throughput": "nothing was scored anew for this report"}
    page.section("How this was made", facts({**(made or {}), **none}))
    return page


def _tiles(
    digest: Digest, threshold: float | None, throughput: Throughput | None
) -> list[tuple[str, str]]:
    found = [(f"{digest.scored:,}", f"inputs scored; {digest.skipped:,} skipped")]
    if digest.decided:
        by = "" if threshold is None else f": above the threshold {threshold:.4g}"
        share = f"{digest.flagged / digest.decided:.1%} called anomalous{by}"
        found.append((f"{digest.flagged:,}", share))
    else:
        found.append(("–", "no decisions: the detector is not calibrated"))
    found.append((f"{digest.limits[1]:.4g}", f"highest score; lowest {digest.limits[0]:.4g}"))
    if throughput is not None:
        words = "inputs a second, reading and writing included"
        found.append((f"{throughput.per_second:,.0f}", words))
    return found


def _distribution(
    page: Page, rows: Callable[[], Iterable[Row]], digest: Digest, threshold: float | None
) -> list[Html]:
    counts, edges, squash = histogram_of(rows, digest)
    plot = figures.histogram({"scored inputs": counts}, edges, squash, threshold=threshold)
    low, high = digest.limits
    names = ("lowest", *(f"{q:.0%}" for q in _QUANTILES), "highest")
    quantiles = (low, *np.quantile(digest.sample, _QUANTILES), high)
    listed = [(name, f"{score:.4g}") for name, score in zip(names, quantiles, strict=True)]
    drawn = f" Quantiles are those of {SAMPLE:,} scores drawn at random."
    return [
        soft("All scores, on an axis that is even around the median and logarithmic far from it.",
             drawn if digest.scored > SAMPLE else ""),
        beside(page.plots([plot]), table(("quantile", "score"), listed)),
    ]  # fmt: skip


def p_value_parts(page: Page, found: Counter[float]) -> list[Html]:
    """The share of inputs up to each p-value, and numbers of calls at some rates of false ones.

    ``found`` counts how often each p-value occurs: a calibration set has few.
    """
    values = np.array(sorted(found))
    counts = np.array([found[value] for value in values.tolist()])
    total, below = int(counts.sum()), counts.cumsum()
    lines = {
        "inputs": (np.append(0, values), np.append(0, below / total)),
        "if all were normal": (np.array([0.0, 1.0]), np.array([0.0, 1.0])),
    }
    plot = figures.curves("p_values", lines, x="p-value", y="share of inputs at or below")
    every = values.repeat(counts) if total <= _MOST else None
    rows = []
    for level in _LEVELS:
        small = int(counts[values <= level].sum())
        calls = [
            "–"
            if every is None
            else f"{np.count_nonzero(control_fdr(every, level=level, method=method)):,}"
            for method in ("bh", "storey")
        ]
        rows.append((f"{level:g}", f"{small:,}", f"{level * total:,.0f}", *calls))
    head = ("level", "p ≤ level", "expected of normal inputs", "Benjamini–Hochberg", "Storey")
    return [
        soft(
            "The probability that a normal input scores as high, by the scores of the calibration. "
            "It is valid for inputs that are exchangeable with those. The two last columns are how "
            "many inputs can be called anomalous so that, on average, no more than this share of "
            "the calls is false: for independent inputs."
        ),
        beside(page.plots([plot]), table(head, rows)),
    ]


def _extremes(digest: Digest, source: Source | None) -> list[Html]:
    framed = " Red frame: called anomalous; blue: normal." if digest.decided else ""
    layers = (
        " Below each, the parameters whose gradient norms are furthest from those of normal "
        "inputs: by so many standard deviations (σ) of the log norm larger (+) or smaller (−)."
        if digest.reactions
        else " This detector reads no gradient norms, so there are no layers to name."
    )
    note = f"The {len(digest.highest)} inputs with the highest scores.{layers}"
    return [soft(note, framed if source is not None else ""), gallery(digest.highest, source)]


def speed(page: Page, throughput: Throughput, before: int) -> list[Html]:
    """Inputs a second over the run, after ``before`` others in earlier ones."""
    seconds = [0.0, *(at for at, _ in throughput.history)]
    done = [0, *(count for _, count in throughput.history)]
    rates = np.diff(done) / np.maximum(np.diff(seconds), 1e-9)
    note = (
        f"{throughput.inputs:,} inputs in {throughput.seconds:,.1f} s in this run: "
        f"{throughput.per_second:,.1f} inputs a second, from the first input read to the last "
        "score written; loading the model is not counted."
        f"{f' {before:,} others were scored by an earlier run.' if before else ''}"
    )
    plot = figures.curves(
        "throughput",
        {"inputs/s": (seconds, np.append(rates, rates[-1:]))},
        x="seconds",
        y="inputs/s",
        limits=False,
        steps="post",
    )
    plot.figure.axes[0].set_ylim(bottom=0)
    return [soft(note), page.plots([plot])]


def errors(digest: Digest) -> Html:
    """The first inputs without a score, and why."""
    rows = [(row["id"], tag("td", row["error"], class_="text")) for row in digest.errors]
    more = digest.skipped - len(rows)
    return html(
        table(("input", tag("span", "what is wrong")), rows),
        soft(f"and {more:,} more, in the score file") if more > 0 else "",
    )
