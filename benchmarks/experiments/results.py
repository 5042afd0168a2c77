"""Rows of measurements, grouped and averaged: means ± standard deviations in Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

from benchmarks.experiments.rows import Row

FAST = 'GradientDetector "fast"'
ADVERSARIAL = 'GradientDetector "adversarial"'
FORWARD = 'GradientDetector "forward"'
OURS = (FORWARD, FAST, ADVERSARIAL)


class Results:
    """The rows of one part."""

    def __init__(self, rows: Iterable[Row], part: str) -> None:
        self.part, self.rows = part, [row for row in rows if row.part == part]
        self.detectors = list(dict.fromkeys(row.detector for row in self.rows))
        self.sets = list(dict.fromkeys(row.set for row in self.rows))
        self.runs = list(dict.fromkeys((row.classifier, row.seed) for row in self.rows))

    def by_classifier(self) -> dict[str, list[Row]]:
        """The rows of each classifier."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.classifier, []).append(row)
        return found

    def values(self, detector: str, metric: str, sets: Sequence[str]) -> list[float]:
        """For every classifier and seed the mean over those of ``sets`` that it has."""
        found = []
        for run in self.runs:
            rows = [
                getattr(row, metric)
                for row in self.rows
                if (row.classifier, row.seed) == run and row.detector == detector
                if row.set in sets
            ]
            if rows:
                found.append(fmean(rows))
        return found

    def cell(self, detector: str, metrics: Sequence[str], sets: Sequence[str]) -> str:
        """``mean ± standard deviation`` of each metric."""
        parts = []
        for metric in metrics:
            values = self.values(detector, metric, sets)
            if not values:
                return "–"
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            parts.append(f"{fmean(values):.1f}{spread}")
        return " / ".join(parts)

    def mean(self, detector: str, metric: str, sets: Sequence[str]) -> float | None:
        """Over everything, if anything is there."""
        values = self.values(detector, metric, sets)
        return fmean(values) if values else None


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown, the first column to the left."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def summary(found: Results, groups: dict[str, list[str]]) -> str:
    """AUROC / FPR95 over groups of sets, a detector a line."""
    lines = [
        [name, *(found.cell(name, ("auroc", "fpr95"), sets) for sets in groups.values())]
        for name in found.detectors
    ]
    return table(["", *groups], lines)


def by_set(found: Results, metric: str) -> str:
    """One metric, a detector a line, a set a column."""
    lines = [
        [name, found.cell(name, (metric,), found.sets)]
        + [found.cell(name, (metric,), (one,)) for one in found.sets]
        for name in found.detectors
    ]
    return table(["", "mean", *found.sets], lines)
