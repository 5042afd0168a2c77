"""Composite operators, and the operators that each is made of.

A rule knows one operator. PyTorch's composites that are Python functions run here without their own
dispatch, so that what they call is seen; those that are written in C++ have a body here.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradood.gradients import recurrent
from gradood.gradients.rules import RULES

Function = Callable[..., Any]

_EXPANDABLE = ("torch.nn.functional", "torch.functional")
_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def expansion(function: Function, args: Any, kwargs: Any) -> Function | None:
    """What to run in place of ``function`` with these arguments, if not the function itself."""
    choose = _BODIES.get(function)
    return _unguarded(function) if choose is None else choose(*args, **kwargs)


def _attention_body(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Function | None:
    biased = attn_mask is not None and attn_mask.dtype != torch.bool
    return _attention if biased else None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention in single operators, so that a bias made of parameters is seen to be added."""
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.transpose(-2, -1) * scale
    weights = functional.dropout((scores + attn_mask).softmax(-1), dropout_p, dropout_p > 0)
    return weights @ value


def _always(body: Function) -> Callable[..., Function | None]:
    return lambda *_, **__: body


_BODIES: dict[Function, Callable[..., Function | None]] = {
    functional.scaled_dot_product_attention: _attention_body,
    **{function: _always(body) for function, body in recurrent.BODIES.items()},
}


@cache
def _unguarded(function: Function) -> Function | None:
    """A composite function without its own dispatch, so that the mode sees what it calls.

    Functions such as ``multi_head_attention_forward`` hand themselves to an active mode, and would
    for ever: this copy believes that there is none.
    """
    if not isinstance(function, types.FunctionType) or function in RULES:
        return None
    scope = function.__globals__
    if function.__module__ not in _EXPANDABLE or not any(check in scope for check in _CHECKS):
        return None
    scope = {**scope, **dict.fromkeys(_CHECKS, lambda *tensors: False)}
    body = types.FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    body.__kwdefaults__ = function.__kwdefaults__
    return body
