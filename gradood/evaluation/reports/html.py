"""HTML in which text cannot become markup: whatever is not ``Html`` is escaped.

Elements with a structure of their own are macros of ``templates/parts.html``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from gradood.text import printable

#: Colours by name: on a light page, as figures are drawn, and on a dark one.
COLOURS = {
    "ink": ("#1d2733", "#e4e9ee"),
    "soft": ("#5a6977", "#9fadba"),
    "line": ("#dfe5eb", "#303b46"),
    "card": ("#fffffe", "#1a2129"),
    "ground": ("#f5f7f9", "#10151a"),
    "shade": ("#e6f2ec", "#1e3a30"),
    "blue": ("#2a6f97", "#6cb2dc"),
    "red": ("#d1495b", "#f2798a"),
    "green": ("#3a7d44", "#7bc487"),
    "orange": ("#b5651d", "#e7a35c"),
    "violet": ("#6a4c93", "#b394dd"),
    "teal": ("#107c82", "#4fc3c8"),
    "olive": ("#857010", "#d1bb53"),
    "grey": ("#8a949e", "#8b96a1"),
}

NORMAL, ANOMALOUS = COLOURS["blue"][0], COLOURS["red"][0]

#: Markup; a plain ``str``, such as the name of a file, is text.
Html = Markup


def html(*content: Any) -> Html:
    """Markup as it is, everything else as text without control characters."""
    return Html("".join(escape(_text(c)) for c in content))


def tag(name: str, *content: Any, **attributes: Any) -> Html:
    """An element; ``class_`` is the attribute ``class``, and None leaves an attribute out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(printable(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name == "img":
        return Html(f"<img{given}>")
    return Html(f"<{name}{given}>{html(*content)}</{name}>")


def render(template: str, **values: Any) -> str:
    """A file of ``templates/``, filled in."""
    return _environment().get_template(template).render(values)


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], marked: Sequence[int] = ()) -> Html:
    """A table that scrolls by itself where the page is narrow; ``marked`` rows are bold."""
    return _part("table", head, rows, marked)


def facts(pairs: Mapping[str, Any]) -> Html:
    """Terms, each with its description."""
    return _part("facts", pairs.items())


def tiles(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """Large numbers, each with a few words."""
    return _part("tiles", pairs)


def details(summary: Any, *content: Any) -> Html:
    """Content that is shown on request."""
    return _part("details", summary, html(*content))


def beside(*content: Any) -> Html:
    """A figure and its numbers, side by side where there is room."""
    return tag("div", *content, class_="beside")


def soft(*content: Any) -> Html:
    """A paragraph that explains."""
    return tag("p", *content, class_="soft")


def _part(name: str, *arguments: Any) -> Html:
    macro = getattr(_environment().get_template("parts.html").module, name)
    found: Html = macro(*arguments)
    return found


@cache
def _environment() -> Environment:
    loader = PackageLoader("gradood.evaluation.reports")
    environment = Environment(loader=loader, autoescape=True, finalize=_text)
    environment.tests["cell_element"] = lambda c: isinstance(c, Html) and c.startswith("<td")
    environment.globals["colours"] = COLOURS
    return environment


def _text(value: Any) -> str:
    return value if isinstance(value, Html) else printable(str(value))
