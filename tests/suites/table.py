"""The counts of a run, as a page."""

from __future__ import annotations

from collections import Counter, defaultdict
from importlib.metadata import version
from typing import Any

import torch

from tests.suites.classifier import Layout
from tests.suites.judge import RIGHT, Row
from tests.suites.listed import listed
from tests.suites.oracle import LOOP_ERRORS, TOLERANCE

#: The case of the line that closes an entry.
END = "end"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "opacus", "backpack-for-pytorch")


def page(lines: list[dict[str, Any]]) -> str:
    """Counts by suite, then reasons."""
    rows = [Row(**line) for line in lines if line["case"] != END]
    by_suite: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_suite[row.suite].append(row)
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return "\n".join(
        [
            "# Suites that nobody here wrote",
            "",
            "Made by `python -m tests.suites run --out results.jsonl` and",
            "`python -m tests.suites table results.jsonl > tests/suites/README.md`. What a row is",
            "compared with, and how closely, stands in `judge.py`. Fallbacks are counted where a",
            "function takes the whole batch; what runs in a loop over samples has no other way.",
            versions + ".",
            "",
            *_counts(by_suite),
            "",
            "## Parameters on a fallback, by reason",
            "",
            *_reasons(list(filter(_takes_a_batch, rows)), _fallback_reasons),
            "",
            "## Rows without an oracle, by reason",
            "",
            *_reasons([r for r in rows if r.outcome == "no oracle"], lambda r: [r.reason]),
            "",
            "## Listed rows",
            "",
            *_reasons([r for r in rows if not r.right], _listed_reason),
            "",
        ]
    )


def _counts(by_suite: dict[str, list[Row]]) -> list[str]:
    lines = [
        "| suite | entries | rows | exact | refused rightly | no oracle | listed | at fault "
        "| parameters on a fallback | of their elements | float32 error / promised, at most |",
        "| --- " + "| ---: " * 10 + "|",
    ]
    for suite, rows in by_suite.items():
        counts = Counter(row.outcome for row in rows)
        wrong = [row for row in rows if row.outcome not in RIGHT]
        known = sum(listed(row) is not None for row in wrong)
        exact = [row for row in rows if row.outcome == "exact"]
        batched = list(filter(_takes_a_batch, exact))
        cells = [
            suite,
            len({row.entry for row in rows}),
            len(rows),
            *(counts[outcome] for outcome in RIGHT),
            known,
            len(wrong) - known,
            _share(sum(len(r.fallbacks) for r in batched), sum(r.parameters for r in batched)),
            _share(sum(r.fallback_elements for r in batched), sum(r.elements for r in batched)),
            f"{max(map(_of_promise, exact), default=0.0):.2f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _takes_a_batch(row: Row) -> bool:
    """Whether the function got all samples at once, not one after the other in a loop."""
    return not row.case.endswith(Layout.EACH.value)


def _of_promise(row: Row) -> float:
    promised = max(TOLERANCE[torch.float32], LOOP_ERRORS * (row.loop32 or 0.0))
    return (row.error32 or 0.0) / promised


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.2f} %"


def _fallback_reasons(row: Row) -> list[str]:
    return [text.partition(": ")[2] for text in row.fallbacks]


def _listed_reason(row: Row) -> list[str]:
    found = listed(row)
    return [f"{row.outcome}, at fault: {row.reason}" if found is None else found.reason]


def _reasons(rows: list[Row], reasons: Any) -> list[str]:
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        counts.update((row.suite, reason) for reason in reasons(row))
    if not counts:
        return ["None."]
    lines = ["| suite | reason | count |", "| --- | --- | ---: |"]
    for (suite, reason), count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1])):
        reason = " ".join(reason.split()).replace("|", "\\|")
        lines.append(f"| {suite} | {reason} | {count} |")
    return lines
