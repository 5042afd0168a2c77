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
from torch.nn import Parameter, functional
from torch.overrides import handle_torch_function

from gradood.gradients import packed, recurrent
from gradood.gradients.rules import RULES
from gradood.gradients.rules.copies import written
from gradood.gradients.rules.embedding import refuse_renormalisation

Function = Callable[..., Any]

_EXPANDABLE = ("torch.nn.functional", "torch.functional")
_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def expansion(function: Function, args: Any, kwargs: Any) -> Function | None:
    """The function to run instead of ``function`` for these arguments; None to run it as it is."""
    choose = _BODIES.get(function)
    return _unguarded(function) if choose is None else choose(*args, **kwargs)


def may_expand(function: Function) -> bool:
    """Whether there are arguments for which something else runs instead of ``function``."""
    return function in _BODIES or _unguarded(function) is not None


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


def _likeness(place: int, function: Function) -> Callable[..., Function | None]:
    """For operators that read no more than shape and type of the argument in ``place``."""

    def body(*args: Any, **kwargs: Any) -> Any:
        return function(*args[:place], args[place].detach(), *args[place + 1 :], **kwargs)

    def choose(*args: Any, **kwargs: Any) -> Function | None:
        return body if len(args) > place and isinstance(args[place], Parameter) else None

    return choose


def _index_select_body(*_: Any, **kwargs: Any) -> Function | None:
    return None if "out" in kwargs else packed.index_select


def _sort_body(input: Tensor, *_: Any, **__: Any) -> Function | None:
    return packed.sort if input.dim() == 1 and not input.is_floating_point() else None


def _set_item(target: Tensor, index: Any, value: Any) -> Tensor:
    """Item assignment that returns the changed tensor, so that its gradient can be received."""
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


def _embedding_body(
    input: Tensor,
    weight: Tensor,
    padding_idx: Any = None,
    max_norm: float | None = None,
    *_: Any,
    **__: Any,
) -> None:
    refuse_renormalisation(max_norm)


def _bag_body(
    input: Tensor,
    weight: Tensor,
    offsets: Any = None,
    max_norm: float | None = None,
    *_: Any,
    **__: Any,
) -> Function:
    refuse_renormalisation(max_norm)
    return _bag


def _bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Look up ``[N, T]`` rows, bags filled up to one length, and reduce them."""
    if input.dtype not in (torch.int32, torch.int64):  # some versions take them exchanged
        input, weight = weight, input
    kept = torch.ones_like(input, dtype=torch.bool)
    if offsets is not None:
        ends = (
            offsets[1:] if include_last_offset else offsets.new_tensor([*offsets[1:], len(input)])
        )
        starts = offsets[: len(ends)]
        lengths = ends - starts
        steps = torch.arange(
            int(lengths.max()) if len(lengths) else 0, device=input.device, dtype=torch.int64
        )
        places = (starts[:, None] + steps).clamp(max=max(0, len(input) - 1))
        kept = steps < lengths[:, None]
        input = input[places]
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights[places]
    if padding_idx is not None:
        kept = kept & (input != padding_idx % len(weight))
    rows = functional.embedding(input, weight, scale_grad_by_freq=scale_grad_by_freq)
    if mode == "max":
        filled = rows.masked_fill(~kept[..., None], -torch.inf).max(1).values
        return filled.masked_fill(~kept.any(1)[:, None], 0.0)
    scale = kept.to(rows.dtype)
    if per_sample_weights is not None:
        scale = scale * per_sample_weights
    total = (rows * scale[..., None]).sum(1)
    return total if mode == "sum" else total / kept.sum(1)[:, None].clamp(min=1)


_BODIES: dict[Function, Callable[..., Function | None]] = {
    functional.scaled_dot_product_attention: _attention_body,
    Tensor.__setitem__: _always(_set_item),
    **{
        function: _likeness(1, function)
        for function in (Tensor.to, Tensor.type_as, Tensor.expand_as, Tensor.view_as)
    },
    **{
        getattr(owner, name): _likeness(0, getattr(owner, name))
        for kind in ("zeros", "ones", "empty", "full", "rand", "randn")
        for owner, name in ((Tensor, f"new_{kind}"), (torch, f"{kind}_like"))
        if hasattr(owner, name)
    },
    functional.embedding: _embedding_body,
    functional.embedding_bag: _bag_body,
    torch.einsum: _einsum_body,
    **dict.fromkeys((torch.chain_matmul, torch.linalg.multi_dot), _always(_chain)),
    functional.bilinear: _always(_bilinear),
    **{function: _always(cell) for function, cell in recurrent.CELLS.items()},
    **{getattr(torch, kind): packed.body(kind) for kind in recurrent.LAYERS},
    torch.sort: _sort_body,
    **dict.fromkeys((torch.index_select, Tensor.index_select), _index_select_body),
    torch._pack_padded_sequence: _always(packed.pack),
    torch._pad_packed_sequence: _always(packed.pad),
}


@cache
def _unguarded(function: Function) -> Function | None:
    """A composite function without its own dispatch, so that the mode sees what it calls.

    These functions re-dispatch while a mode is active, which would recurse; the copy's
    ``has_torch_function`` checks return False.
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
