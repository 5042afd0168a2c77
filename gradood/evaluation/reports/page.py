"""A page: sections of text, tables, figures and pictures in one file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradood.evaluation.reports.figures import Plot
from gradood.evaluation.reports.html import Html, html, render, tag
from gradood.writing import write_file


class Page:
    """What is written as ``index.html``, with every figure as a PNG file beside it.

    Args:
        title: Of the page, and its heading.
        lead: What the page is about, in a sentence or two.
        renew: Seconds after which a browser loads the page again; None for never.
    """

    def __init__(self, title: str, *lead: Any, renew: int | None = None) -> None:
        self._title, self._renew = title, renew
        self._parts: list[Html] = [tag("p", *lead, class_="soft")]
        self._plots: dict[str, Plot] = {}

    def add(self, *content: Any) -> None:
        """Put something after what is there."""
        self._parts.append(html(*content))

    def section(self, heading: str, *content: Any) -> None:
        """Add a section."""
        self.add(tag("section", tag("h2", heading), *content))

    def plots(self, plots: Iterable[Plot], wide: bool = False) -> Html:
        """Figures side by side, as many as the width takes; also kept for PNG files."""
        found = []
        for plot in plots:
            kind = re.sub(r"[^a-z0-9]+", "-", plot.kind.lower()).strip("-")
            number = sum(name.startswith(f"{kind}-") for name in self._plots) + 1
            name = f"{kind}-{number}"
            self._plots[name] = plot
            found.append(plot.svg(name))
        return tag("div", *found, class_="plots wide" if wide else "plots")

    def __str__(self) -> str:
        """The page."""
        return render("page.html", title=self._title, renew=self._renew, parts=self._parts)

    def write(self, folder: Path) -> Path:
        """Write the page and its figures into ``folder``; returns where the page is."""
        page = folder / "index.html"
        for name, plot in self._plots.items():
            write_file(folder / f"{name}.png", plot.png())
        write_file(page, str(self))
        return page
