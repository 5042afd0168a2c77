"""One file a family of operators; each knows the per-sample gradient of its parameters.

A new operator is a new file and a line in ``RULES``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradood.gradients.rules import broadcast, conv, embedding, linear, norm
from gradood.gradients.rules.call import Call

__all__ = ["RULES", "Call"]

RULES: dict[Callable[..., Any], type[Call]] = {
    **linear.RULES,
    **conv.RULES,
    **norm.RULES,
    **embedding.RULES,
    **broadcast.RULES,
}
