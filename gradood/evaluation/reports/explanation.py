"""The page on single inputs: which layers reacted, and which normal inputs are most like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradood.arrays import Bools, Floats
from gradood.data.files.source import Source
from gradood.evaluation.reports import figures
from gradood.evaluation.reports.digest import Ranked
from gradood.evaluation.reports.html import facts, soft, table
from gradood.evaluation.reports.page import Page
from gradood.evaluation.reports.pictures import gallery

#: Layers in the table, in the figure, and normal inputs beside each input.
_LAYERS, _DRAWN, _NEAREST = 15, 40, 10


class Known(NamedTuple):
    """What is known of some inputs.

    Attributes:
        ids: Their names.
        scores: ``[N]``.
        deviations: ``[N, L]``, of log gradient norms from those of normal inputs, in standard
            deviations.
        source: Where they can be read again.
    """

    ids: list[str]
    scores: Floats
    deviations: Floats
    source: Source


def nearest(deviations: Floats, usual: Floats, count: int = _NEAREST) -> tuple[list[int], Floats]:
    """The rows of ``usual`` ``[N, L]`` nearest to ``deviations`` ``[L]``, and all distances.

    ``sqrt(mean over layers of (difference)^2)``: standard deviations a layer. A row that is the
    same is another copy of the input, and left out.
    """
    distances: Floats = np.sqrt(((usual - deviations) ** 2).mean(1))
    places = [int(place) for place in distances.argsort(kind="stable") if distances[place] > 0]
    return places[:count], distances


def explanation_page(
    strange: Known,
    usual: Known,
    names: Sequence[str],
    *,
    threshold: float | None = None,
    made: Mapping[str, Any] | None = None,
) -> Page:
    """A page on inputs, beside the normal ones ``usual``; ``names`` are those of the layers."""
    page = Page(
        "What reacted, and to what",
        "How far the gradient norm of every parameter is from those of normal inputs, in standard "
        f"deviations (σ) of its logarithm; beside it the {_NEAREST} nearest of {len(usual.ids):,} "
        "normal inputs.",
    )
    for number in range(len(strange.ids)):
        _section(page, strange, number, usual, names, threshold)
    page.section("How this was made", facts(made or {}))
    return page


def _section(
    page: Page,
    strange: Known,
    number: int,
    usual: Known,
    names: Sequence[str],
    threshold: float | None,
) -> None:
    deviations, score = strange.deviations[number], float(strange.scores[number])
    places, distances = nearest(deviations, usual.deviations)
    order = np.abs(deviations).argsort()[::-1]
    rows = []
    for place in order[:_LAYERS]:
        beyond = np.abs(usual.deviations[:, place]) >= abs(deviations[place])
        rows.append((names[place], f"{deviations[place]:+.2f}", _share(beyond)))
    drawn = np.sort(order[:_DRAWN])  # in the order of the network
    lines = np.stack([deviations, *usual.deviations[places[:3]]])[:, drawn]
    down = ["this input", *(f"nearest {i + 1}" for i in range(len(lines) - 1))]
    plot = figures.heat_map("layers", lines, down, [names[place] for place in drawn])
    verdict = "" if threshold is None else (
        f" It is called {'anomalous' if score > threshold else 'normal'}: the threshold is "
        f"{threshold:.4g}."
    )  # fmt: skip
    shown = {"id": strange.ids[number], "score": score}
    if threshold is not None:
        shown["decision"] = 1 if score > threshold else -1
    near = [
        Ranked(p, {"id": usual.ids[p], "score": float(usual.scores[p]), "distance": distances[p]})
        for p in places
    ]
    page.section(
        strange.ids[number],
        soft(
            f"Score {score:.4g}; {_share(usual.scores >= score)} of the normal inputs score as "
            f"high.{verdict}"
        ),
        gallery([Ranked(number, shown)], strange.source),
        table(("layer", "deviation, σ", "normal inputs as far"), rows),
        page.plots([plot], wide=True),
        soft(
            "The nearest normal inputs, by what the layers do, with their scores and their "
            "distance in σ a layer."
        ),
        gallery(near, usual.source),
    )


def _share(found: Bools) -> str:
    return f"{found.mean():.1%}" if found.any() else "none"
