"""The colours of reports; ``templates/style.css`` uses them."""

#: By name: on white, as figures are drawn, and what a dark page shows instead.
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


def colours(which: int) -> str:
    """CSS variables: 0 for a light page, 1 for a dark one."""
    return " ".join(f"--{name}: {pair[which]};" for name, pair in COLOURS.items())
