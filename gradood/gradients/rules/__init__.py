"""One file a family of operators; each knows the per-sample gradient of its parameters.

A new operator is a new file and a line in ``RULES``. Any other operator may have ``AloneCall``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradood.gradients.rules import (
    broadcast,
    contraction,
    conv,
    copies,
    distance,
    embedding,
    linear,
    norm,
)
from gradood.gradients.rules.alone import AloneCall
from gradood.gradients.rules.call import Call

__all__ = ["RULES", "AloneCall", "Call", "bind", "rule_of"]

RULES: dict[Callable[..., Any], type[Call]] = {
    **contraction.RULES,
    **linear.RULES,
    **conv.RULES,
    **norm.RULES,
    **copies.RULES,
    **distance.RULES,
    **embedding.RULES,
    **broadcast.RULES,
}


def bind(function: Callable[..., Any], args: Any, kwargs: Any) -> Call | str:
    """Read an operator call by its rule, or by the one for any operator; or say why not."""
    call: Call | str = ""
    if function in RULES:
        try:
            call = RULES[function].bind(function, *args, **kwargs)
        except TypeError:
            name = getattr(function, "__name__", str(function))
            call = f"{name} was called with arguments that no rule knows"
    if isinstance(call, Call):
        return call
    alone = AloneCall.bind(function, *args, **kwargs)
    return alone if isinstance(alone, Call) else call or alone


def rule_of(call: Call, function: Callable[..., Any]) -> type[Call]:
    """The rule that binds a function to such a call."""
    return AloneCall if isinstance(call, AloneCall) else RULES[function]
