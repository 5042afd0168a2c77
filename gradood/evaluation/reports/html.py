"""HTML in which text cannot become markup: whatever is not ``Html`` is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gradood.text import printable


class Html(str):
    """Markup; a plain ``str``, such as the name of a file, is text."""


def html(*content: Any) -> Html:
    """Markup as it is, everything else as text without control characters."""
    return Html("".join(c if isinstance(c, Html) else _escaped(c) for c in content))


def tag(name: str, *content: Any, **attributes: Any) -> Html:
    """An element; ``class_`` is the attribute ``class``, and None leaves an attribute out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name == "img":
        return Html(f"<img{given}>")
    return Html(f"<{name}{given}>{html(*content)}</{name}>")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], marked: Sequence[int] = ()) -> Html:
    """A table that scrolls by itself where the page is narrow; ``marked`` rows are bold."""
    header = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = (
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(cell if _is_cell(cell) else tag("td", cell) for cell in row[1:]),
            class_="mean" if number in marked else None,
        )
        for number, row in enumerate(rows)
    )
    return tag("div", tag("table", tag("thead", header), tag("tbody", *body)), class_="scroll")


def facts(pairs: Mapping[str, Any]) -> Html:
    """Terms and what is to be said of each."""
    return tag("dl", *(html(tag("dt", name), tag("dd", fact)) for name, fact in pairs.items()))


def tiles(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """Large numbers, each with a few words."""
    return tag(
        "div",
        *(tag("div", tag("b", number), tag("span", words), class_="tile")
          for number, words in pairs),
        class_="tiles",
    )  # fmt: skip


def beside(*content: Any) -> Html:
    """A figure and its numbers, side by side where there is room."""
    return tag("div", *content, class_="beside")


def details(summary: Any, *content: Any) -> Html:
    """What is shown on request."""
    return tag("details", tag("summary", summary), *content)


def soft(*content: Any) -> Html:
    """A paragraph that explains."""
    return tag("p", *content, class_="soft")


def _is_cell(content: Any) -> bool:
    return isinstance(content, Html) and content.startswith("<td")


def _escaped(value: Any) -> str:
    return escape(printable(str(value)))
