"""What a report says of conformal p-values: how they lie, and what can be called from them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from gradood.evaluation.conformal import control_fdr
from gradood.evaluation.reports import figures
from gradood.evaluation.reports.html import Html, beside, soft, table
from gradood.evaluation.reports.page import Page

_LEVELS = (0.01, 0.05, 0.1, 0.2)
#: Inputs up to which false calls are controlled: the procedure holds all p-values.
_MOST = 1_000_000


def p_value_parts(page: Page, found: Counter[float]) -> list[Html]:
    """The share of inputs up to each p-value, and numbers of calls at some rates of false ones.

    Args:
        page: To draw on.
        found: How often each p-value occurs; a calibration set has few.
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
