"""Figures of one panel each: SVG in the colours of the page, and PNG files that stand alone."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.figure import Figure

from gradood.arrays import Floats
from gradood.evaluation.reports.axis import Squash
from gradood.evaluation.reports.html import ANOMALOUS, COLOURS, NORMAL, Html
from gradood.text import printable

_INK, _SOFT, _LINE = (COLOURS[name][0] for name in ("ink", "soft", "line"))
#: Colours, then dashes, of lines without a style of their own.
_CYCLE = [
    (COLOURS[name][0], dashes)
    for dashes in ("-", "--", ":")
    for name in ("blue", "red", "green", "orange", "violet", "teal", "olive", "grey")
]
#: Inches of a panel, without its legend.
_WIDTH, _HEIGHT = 4.2, 2.9
#: Largest number of points of a line.
_MOST_POINTS = 400

Line = tuple[npt.ArrayLike, npt.ArrayLike]


@dataclass(frozen=True)
class Plot:
    """A figure, what kind it is, and what it shows in words."""

    kind: str
    figure: Figure
    alt: str

    def svg(self, name: str) -> Html:
        """An ``<svg>`` whose colours are the page's; ``name`` is unique on the page."""
        buffer = io.StringIO()
        # Text stays text: it can be read aloud, searched and shown in the reader's font.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), _any_letters():
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        drawn = ElementTree.fromstring(buffer.getvalue())
        drawn.attrib = {"viewBox": drawn.attrib["viewBox"], "role": "img"}
        for element in list(drawn.iter()):
            _for_the_page(element)
        title = ElementTree.Element("title")
        title.text = printable(self.alt)
        drawn.insert(0, title)
        content = ElementTree.tostring(drawn, encoding="unicode")
        for colour, (light, _) in COLOURS.items():
            content = content.replace(light, f"var(--{colour})")
        return Html(content)

    def png(self) -> bytes:
        """On white, at 144 dots an inch."""
        buffer = io.BytesIO()
        with _any_letters():
            self.figure.savefig(buffer, format="png", dpi=144, facecolor="white")
        return buffer.getvalue()


def _for_the_page(element: ElementTree.Element) -> None:
    """Drop what HTML does without, and what would reach beyond a figure: style sheets and names.

    Without namespaces, ``xlink:href`` is the ``href`` of SVG 2; the font is the reader's.
    """
    element.tag = _local(element.tag)
    element.attrib = {_local(name): value for name, value in element.attrib.items()}
    for child in list(element):
        if _local(child.tag) in ("style", "metadata"):
            element.remove(child)
    if element.tag == "g":
        element.attrib.pop("id", None)
    if style := element.get("style"):
        rules = (rule for rule in style.split("; ") if not rule.startswith("font-family"))
        element.set("style", "; ".join(rules))


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def histogram(
    counts: Mapping[str, npt.ArrayLike],
    edges: Floats,
    squash: Squash,
    *,
    title: str = "",
    threshold: float | None = None,
    kind: str = "histogram",
) -> Plot:
    """Shares of the scores of one or two kinds of inputs in bins, and the threshold.

    ``counts`` are ``[B]`` by kind, ``edges`` ``[B + 1]``.
    """
    figure, panel = _panel(title, "score (more anomalous →)", "share of inputs")
    places = squash.forward(edges)
    for (label, numbers), colour in zip(counts.items(), (NORMAL, ANOMALOUS), strict=False):
        shares = np.asarray(numbers, np.float64) / max(1, np.sum(numbers))
        panel.stairs(shares, places, fill=True, alpha=0.55, color=colour, label=_label(label))
    if threshold is not None:
        at = float(squash.forward(threshold))
        panel.axvline(at, color=_INK, linewidth=1, linestyle=":", label="threshold")
    ticks = _ticks(squash, places)
    panel.set_xticks(squash.forward(ticks), [f"{tick:g}" for tick in ticks])
    if len(counts) > 1 or threshold is not None:
        _legend(figure, panel)
    shown = " and ".join(counts)
    return Plot(kind, figure, f"Histogram of {shown}{f': {title}' if title else ''}")


def score_histogram(
    normal: Floats, anomalous: Floats, *, title: str = "", threshold: float | None = None
) -> Plot:
    """Scores ``[N]`` of normal and ``[M]`` of anomalous inputs, on the axis of the normal ones."""
    squash, both = Squash.of(normal), np.concatenate([normal, anomalous])
    edges = squash.edges(both.min(), both.max(), 32)
    counts = {"normal": normal, "anomalous": anomalous}
    binned = {name: np.histogram(scores, edges)[0] for name, scores in counts.items()}
    return histogram(binned, edges, squash, title=title, threshold=threshold)


def roc(lines: Mapping[str, Line], **options: Any) -> Plot:
    """False positive and true positive rates by label; options as in ``curves``."""
    return curves("roc", lines, x="false positive rate", y="true positive rate", **options)


def precision_recall(lines: Mapping[str, Line], **options: Any) -> Plot:
    """Recall and precision by label; options as in ``curves``."""
    # The area under these steps is the average precision, that under straight lines is more.
    return curves("precision-recall", lines, x="recall", y="precision", steps="pre", **options)


def curves(
    kind: str,
    lines: Mapping[str, Line],
    *,
    x: str,
    y: str,
    title: str = "",
    styles: Mapping[str, tuple[str, str]] | None = None,
    level: tuple[str, float] | None = None,
    marker: str = "",
    limits: bool = True,
    steps: str = "",
) -> Plot:
    """Lines in one panel.

    Args:
        kind: Of the figure.
        lines: By label, places and values.
        x: What the horizontal axis is.
        y: What the vertical axis is.
        title: Above the panel.
        styles: Colour and dashes by label.
        level: A horizontal line, with its label.
        marker: Of every point.
        limits: Whether values are shares, in [0, 1].
        steps: "post" where a value holds from its place on until the next, "pre" where it holds
            from the place before.
    """
    figure, panel = _panel(title, x, y)
    for (label, (places, values)), style in zip(lines.items(), cycle(_CYCLE), strict=False):
        colour, dashes = (styles or {}).get(label, style)
        panel.plot(
            *_thinned(places, values), color=colour, linestyle=dashes, linewidth=1.5,
            marker=marker, label=_label(label), drawstyle=f"steps-{steps}" if steps else "default",
        )  # fmt: skip
    if level is not None:
        panel.axhline(level[1], color=_SOFT, linewidth=1, linestyle=":", label=level[0])
    if limits:
        panel.set_ylim(-0.02, 1.02)
    if len(lines) > 1 or level is not None:
        _legend(figure, panel)
    return Plot(kind, figure, f"{y} against {x}{f': {title}' if title else ''}")


def heat_map(kind: str, values: Floats, down: Sequence[str], across: Sequence[str]) -> Plot:
    """``[D, A]`` in standard deviations: red is larger than normal, blue smaller."""
    figure = Figure(figsize=(10.5, 1.6 + 0.3 * len(down)), layout="constrained")
    panel = figure.subplots()
    # Values past six standard deviations have the same colour.
    image = panel.imshow(values, cmap="RdBu_r", vmin=-6, vmax=6, aspect="auto")
    _plain(panel)
    panel.set_xticks(range(len(across)), [*map(_label, across)], rotation=90, fontsize=7)
    panel.set_yticks(range(len(down)), [*map(_label, down)], fontsize=9)
    panel.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=panel, pad=0.01, extend="both")
    bar.set_label("standard deviations", fontsize=9, color=_SOFT)
    bar.ax.tick_params(color=_SOFT, labelcolor=_SOFT, labelsize=8)
    bar.outline.set_visible(False)
    return Plot(kind, figure, f"Reaction of {len(across)} parameters to {', '.join(down)}")


def _panel(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    # Fixed margins: finding a layout takes longer than drawing, and pages hold dozens of figures.
    figure.subplots_adjust(left=0.62 / _WIDTH, right=0.98, top=0.91, bottom=0.5 / _HEIGHT)
    panel = figure.subplots()
    panel.set_title(_label(title), fontsize=10, color=_INK, parse_math=False)
    panel.set_xlabel(x, fontsize=9, color=_SOFT)
    panel.set_ylabel(y, fontsize=9, color=_SOFT)
    panel.grid(color=_LINE, linewidth=0.6)
    panel.set_axisbelow(True)
    _plain(panel)
    return figure, panel


def _plain(panel: Any) -> None:
    panel.patch.set_visible(False)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(_LINE)
    panel.tick_params(length=0, labelsize=8, labelcolor=_SOFT)


def _legend(figure: Figure, panel: Any) -> None:
    handles, labels = panel.get_legend_handles_labels()
    longest = max(map(len, labels))
    columns = 3 if longest < 14 else 2 if longest < 24 else 1
    legend = figure.legend(handles, labels, loc="lower center", ncols=columns, fontsize=8,
                           frameon=False, labelcolor=_INK, borderaxespad=0)  # fmt: skip
    inches = 0.1 + 0.16 * -(-len(labels) // columns)
    height = _HEIGHT + inches
    figure.set_size_inches(_WIDTH, height)
    figure.subplots_adjust(bottom=(0.5 + inches) / height, top=1 - 0.28 / height)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _label(text: str, most: int = 40) -> str:
    """The end of a long name; matplotlib leaves out labels that begin with an underscore."""
    text = printable(text)
    shown = text if len(text) <= most else f"…{text[1 - most :]}"
    return f" {shown}" if shown.startswith("_") else shown


def _thinned(places: npt.ArrayLike, values: npt.ArrayLike) -> tuple[Floats, Floats]:
    """At most ``_MOST_POINTS`` points of a line, the first and the last among them."""
    x, y = np.asarray(places, np.float64), np.asarray(values, np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) <= _MOST_POINTS:
        return x, y
    length = np.append(0, np.hypot(np.diff(x), np.diff(y)).cumsum())
    kept = np.searchsorted(length, np.linspace(0, length[-1], _MOST_POINTS)).clip(0, len(x) - 1)
    kept = np.unique(np.append(kept, len(x) - 1))
    return x[kept], y[kept]


def _ticks(squash: Squash, places: Floats) -> list[float]:
    """Round scores at about even places."""
    wanted = np.linspace(places[0], places[-1], 6)
    scores, step = squash.inverse(wanted[1:-1]), np.diff(squash.inverse(wanted))[1:]
    digits = np.floor(np.log10(np.maximum(step, 1e-300))).astype(int)
    rounded = [round(float(s), -int(d)) + 0.0 for s, d in zip(scores, digits, strict=True)]
    low, high = squash.inverse(places[[0, -1]])
    return sorted({tick for tick in rounded if low <= tick <= high})


@contextmanager
def _any_letters() -> Iterator[None]:
    """Letters that the font lacks become boxes in PNG files, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield
