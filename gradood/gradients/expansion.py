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
from torch.overrides import handle_torch_function

from gradood.gradients import recurrent
from gradood.gradients.rules import RULES
from gradood.gradients.rules.copies import written

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


def _set_item(target: Tensor, index: Any, value: Any) -> Tensor:
    """An operator that returns what it has written to, so that a gradient can be waited for."""
    tensors = (target, value) if isinstance(value, Tensor) else (target,)
    result: Tensor = handle_torch_function(written, tensors, target, index, value)
    return result


def _einsum_body(equation: Any, *operands: Any) -> Function | None:
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    return _einsum_in_pairs if isinstance(equation, str) and len(operands) > 2 else None


def _einsum_in_pairs(equation: str, *operands: Any) -> Tensor:
    """An einsum of three tensors or more, two at a time from the left."""
    if len(operands) == 1:
        operands = tuple(operands[0])
    given, arrow, last = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    if not arrow:
        letters = "".join(terms).replace(".", "")
        last = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
        last = "..." * ("..." in given) + last
    result, term = operands[0], terms[0]
    for i in range(1, len(terms) - 1):
        wanted = set("".join(terms[i + 1 :]) + last)
        both = dict.fromkeys((term + terms[i]).replace(".", ""))
        ellipsis = "..." * ("..." in term + terms[i])
        kept = ellipsis + "".join(c for c in both if c in wanted)
        result = torch.einsum(f"{term},{terms[i]}->{kept}", result, operands[i])
        term = kept
    return torch.einsum(f"{term},{terms[-1]}->{last}", result, operands[-1])


def _chain(*matrices: Any, out: None = None) -> Tensor:
    """``chain_matmul`` and ``multi_dot``, from the left."""
    first, *rest = matrices[0] if isinstance(matrices[0], (list, tuple)) else matrices
    for matrix in rest:
        first = first @ matrix
    result: Tensor = first
    return result


def _bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``Σ_ij x_i W_oij y_j + b``."""
    product = torch.einsum("...i,oij->...oj", x, weight)
    out = (product * y.unsqueeze(-2)).sum(-1)
    return out if bias is None else out + bias


_BODIES: dict[Function, Callable[..., Function | None]] = {
    functional.scaled_dot_product_attention: _attention_body,
    Tensor.__setitem__: _always(_set_item),
    torch.einsum: _einsum_body,
    **dict.fromkeys((torch.chain_matmul, torch.linalg.multi_dot), _always(_chain)),
    functional.bilinear: _always(_bilinear),
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
