"""Text that every terminal, file and page takes."""

from __future__ import annotations


def printable(name: str) -> str:
    """Return a name without control characters or bytes that are no text; those are escaped."""
    if name.isprintable() and name.isascii():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
