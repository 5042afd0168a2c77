"""One file a family of operators; each knows the per-sample gradient of its parameters.

A new operator is a new file and a line in ``RULES``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradood.gradients.rules import broadcast, contraction, conv, copies, embedding, linear, norm
from gradood.gradients.rules.call import Call

__all__ = ["RULES", "Call"]

RULES: dict[Callable[..., Any], type[Call]] = {
    **contraction.RULES,
    **linear.RULES,
    **conv.RULES,
    **norm.RULES,
    **copies.RULES,
    **embedding.RULES,
    **broadcast.RULES,
}
