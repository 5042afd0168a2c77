"""Hooks of ``mkdocs build``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_OUTSIDE = re.compile(r"\]\(\.\./([^)\s]+)\)")
_DETECTORS = Path(__file__).parents[1] / "gradood" / "detectors" / "__init__.py"


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Lead links out of ``docs/`` to the repository, and name what ``gradood.detectors`` exports.

    The latter are imports ``X as X``, which mkdocstrings shows only if they are named.
    """
    exported = re.findall(r"import (\w+) as \1$", _DETECTORS.read_text(encoding="utf-8"), re.M)
    members = f"::: gradood.detectors\n    options:\n      members: [{', '.join(exported)}]"
    markdown = markdown.replace("::: gradood.detectors", members)
    return _OUTSIDE.sub(rf"]({config['repo_url']}/blob/main/\1)", markdown)
