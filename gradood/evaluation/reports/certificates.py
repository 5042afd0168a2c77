"""The page of ``gradood certify``: guarantees against the radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from gradood.evaluation.reports import figures
from gradood.evaluation.reports.html import Html, beside, facts, html, soft, table, tag, tiles
from gradood.evaluation.reports.page import Page
from gradood.evaluation.reports.pictures import picture
from gradood.smoothing import Evidence
from gradood.smoothing.evidence import answer

#: Inputs that are shown.
_SHOWN = 24
_KINDS = {
    "class": "Certificates that the class of the smoothed classifier does not change",
    "decision": "Certificates that the decision of the smoothed detector does not change",
    "mean": "Certified bounds of the mean score under noise",
    "quantile": "Certified bounds of a quantile of the score under noise",
    "spread": "Certified bounds of the median score under noise and its interquartile range, added",
}


def certificate_page(
    made: Evidence, inputs: Tensor, *, seconds: float, facts_made: Mapping[str, Any] | None = None
) -> Page:
    """The page on certificates of inputs ``[N, …]``, which took so many ``seconds``."""
    kind, settings = made.common["kind"], made.common["settings"]
    samples = int(made.samples.sum())
    page = Page(
        "What does no small perturbation change?",
        f"{_KINDS[kind]}, whatever moves the input within an l2 radius, in "
        f"{_units(made)}. Each, for one input, is false with a probability of at most "
        f"{settings['alpha']:g}. They are about the smoothed model, which looks at the input under "
        f"Gaussian noise of standard deviation {settings['sigma']:g}, and not about the model "
        "itself.",
    )
    page.add(tiles([*_tiles(made), (f"{samples / seconds:,.0f}", "noisy samples a second")]))
    draw = _radii if kind in ("class", "decision") else _bounds
    page.section("Guarantee against radius", *draw(page, made))
    page.section("Inputs", *_inputs(made, inputs))
    settings = {name: value for name, value in settings.items() if value is not None}
    page.section(
        "How this was made",
        facts(
            {
                "Certified": f"{kind}, {_listed(made.common['target'])}",
                "Smoothing": _listed(settings),
                "Time": f"{seconds:.1f} s for {samples:,} noisy samples of {len(inputs)} inputs",
                **(facts_made or {}),
            }
        ),
    )
    return page


def _units(made: Evidence) -> str:
    pixels = made.common.get("units") == "pixels"
    return "pixels from 0 to 1" if pixels else "units of the model's input"


def _tiles(made: Evidence) -> list[tuple[str, str]]:
    results = made.results
    found = [(f"{len(results):,}", "inputs")]
    if "radius" in results[0]:
        certain = [result["radius"] for result in results if answer(result) != "abstain"]
        found.append((f"{len(certain) / len(results):.0%}", "certified; no answer for the others"))
        if certain:
            found.append((f"{np.median(certain):.4g}", "median radius of those certified"))
    return found


def _radii(page: Page, made: Evidence) -> list[Html]:
    """Share of the inputs whose answer is certified at least that far."""
    by_answer: dict[str, list[float]] = {}
    for result in made.results:
        by_answer.setdefault(answer(result), []).append(result["radius"])
    by_answer.pop("abstain", None)
    every = [radius for radii in by_answer.values() for radius in radii]
    count, farthest = len(made.results), max(every, default=0.0)
    groups = {"all": every, **dict(sorted(by_answer.items()))} if len(by_answer) > 1 else by_answer
    lines = {name: _share(radii, count) for name, radii in groups.items()}
    plot = figures.curves("radius", lines or {"all": ([0, 1], [0, 0])}, x="l2 radius",
                          y="share certified", steps="post")  # fmt: skip
    grid = np.linspace(0, farthest, 6)
    rows = [
        (name, len(radii), *(f"{np.mean(np.array(radii) >= r) * len(radii) / count:.0%}"
                             for r in grid))
        for name, radii in groups.items()
    ]  # fmt: skip
    note = "Share of all inputs whose answer is certified for every perturbation up to the radius."
    head = ("answer", "inputs", *(f"{r:.3g}" for r in grid))
    return [soft(note), beside(page.plots([plot]), table(head, rows))]


def _share(radii: Sequence[float], count: int) -> tuple[list[float], list[float]]:
    ordered = sorted(radii)
    left = [(len(ordered) - passed) / count for passed in range(1, len(ordered) + 1)]
    return [0.0, *ordered], [len(ordered) / count, *left]


def _bounds(page: Page, made: Evidence) -> list[Html]:
    """Bounds of the score of the median input, and of the middle half of the inputs."""
    radii = np.array(made.common["target"]["radius"])
    order = np.argsort(radii)
    quantiles = {
        side: np.quantile([r[side] for r in made.results], [0.25, 0.5, 0.75], axis=0,
                          method="nearest")[:, order]
        for side in ("lower", "upper")
    }  # fmt: skip
    lines = {f"{side} bound": (radii[order], values[1]) for side, values in quantiles.items()}
    rows = [
        (f"{radius:.4g}", *(_bound(value) for side in quantiles.values() for value in side[:, i]))
        for i, radius in enumerate(radii[order])
    ]
    head = ("l2 radius", *(f"{side}, {q}" for side in quantiles for q in ("25%", "50%", "75%")))
    note = (
        "Bounds of the smoothed score: their median over the inputs, and in the table quartiles. "
        "None: so few samples cannot bound it at this radius."
    )
    plot = figures.curves("bounds", lines, x="l2 radius", y="score", limits=False, marker=".")
    return [soft(note), beside(page.plots([plot]), table(head, rows))]


def _inputs(made: Evidence, inputs: Tensor) -> list[Html]:
    shown = [
        tag(
            "figure",
            picture(x, f"input {row['id']}"),
            tag("figcaption", *_said(made, row["id"], result)),
            class_=answer(result) if "decision" in result else None,
        )
        for x, row, result in zip(inputs[:_SHOWN], made.rows, made.results, strict=False)
    ]
    some = f"The first {len(shown)} of {len(inputs)}" if len(inputs) > len(shown) else "All of them"
    return [soft(f"{some}, as the model sees them."), tag("div", *shown, class_="gallery")]


def _said(made: Evidence, number: int, result: Mapping[str, Any]) -> list[Html]:
    if "radius" in result:
        far = f"radius {result['radius']:.4g}" if answer(result) != "abstain" else "not certified"
        return [tag("b", answer(result)), html(f"input {number}: {far}")]
    radii = made.common["target"]["radius"]
    pairs = zip(radii, result["lower"], result["upper"], strict=True)
    bounds = (tag("li", f"r {r:g}: {_bound(low)} to {_bound(high)}") for r, low, high in pairs)
    return [tag("b", f"input {number}"), tag("ul", *bounds)]


def _bound(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "none"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items() if value is not None)
