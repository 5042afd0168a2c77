"""Packed sequences, followed as the padded sequences that they were made of.

To pack, PyTorch sorts the samples by length and strings their steps together, so that samples lie
in no regular order. Each of these steps is made as it is; but its result remembers the tensor with
the samples in their own order, and a recurrent layer, or what undoes the step, goes on with that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradood.gradients import recurrent

_MOVED = "_gradood_moved"
_SORTED = "_gradood_sorted"
_PADDED = "_gradood_padded"


class _Moved(NamedTuple):
    """What ``index_select`` made a tensor of."""

    before: Tensor
    dim: int
    order: Tensor


class _Padded(NamedTuple):
    """The padded tensor ``[T, N, …]`` behind a packed one, samples in their own order."""

    steps: Tensor
    lengths: Tensor
    #: The permutation of the samples before packing, if there was one.
    order: Tensor | None


def sort(input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``torch.sort`` of lengths."""
    found = torch.sort(input, *args, **kwargs)
    _remember(found[0], _SORTED, input, input)
    return found


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """``index_select``; undoing an earlier one returns the original tensor."""
    moved = _recall(input, _MOVED)
    if moved is not None and moved.dim == dim and _is_inverse(moved.order, index):
        before: Tensor = moved.before.clone()
        return before
    out = torch.index_select(input, dim, index)
    _remember(out, _MOVED, _Moved(input, dim, index), input, index)
    return out


def pack(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """``_pack_padded_sequence``."""
    data, batch_sizes = torch._pack_padded_sequence(input, lengths, batch_first)
    moved = _recall(input, _MOVED)
    own = _recall(lengths, _SORTED)
    order = None
    along = 0 if batch_first else 1
    if own is not None and moved is not None and moved.dim == along and _agree(moved, own, lengths):
        input, lengths, order = moved.before, own, moved.order
    if order is not None or own is None:
        steps = input.transpose(0, 1) if batch_first else input
        padded = _Padded(steps, lengths.to(steps.device), order)
        _remember(data, _PADDED, padded, steps, lengths)
        # The number of sequences with a given length does not depend on their order.
        with torch._C.DisableTorchFunction():
            before = torch.arange(len(batch_sizes), dtype=torch.int64, device="cpu")[:, None]
        batch_sizes = (lengths.cpu() > before).sum(1)
    return data, batch_sizes


def pad(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """``_pad_packed_sequence``."""
    known = _recall(data, _PADDED)
    if known is None or total_length > len(known.steps):
        found: tuple[Tensor, Tensor] = torch._pad_packed_sequence(
            data, batch_sizes, batch_first, padding_value, total_length
        )
        return found
    steps, lengths, index = known
    inside = torch.arange(len(steps), device=steps.device, dtype=torch.int64)[:, None] < lengths
    steps = steps.masked_fill(~inside[..., None], padding_value)
    with torch._C.DisableTorchFunction():  # the largest length is no constant of the model
        steps = steps[: max(total_length, len(batch_sizes))]
    steps = steps.transpose(0, 1) if batch_first else steps
    lengths = lengths.cpu()
    if index is None:
        return steps, lengths
    return steps.index_select(0 if batch_first else 1, index), lengths[index.cpu()]


def layers(
    kind: str, data: Tensor, batch_sizes: Tensor, hx: Any, *options: Any
) -> tuple[Tensor, ...]:
    """A recurrent layer over packed sequences."""
    known = _recall(data, _PADDED)
    if known is None:
        padded, lengths = torch._pad_packed_sequence(data, batch_sizes, False, 0.0, -1)
        known = _Padded(padded, lengths.to(data.device), None)
    steps, lengths, index = known
    single = not isinstance(hx, (list, tuple))
    back = None if index is None else _inverse(index)
    states = [_in_own_order(state, steps, back) for state in ([hx] if single else hx)]
    given = states[0] if single else states
    weights, has_biases, number, dropout, train, bidirectional = options
    known_options = (has_biases, number, dropout, train, bidirectional, False)
    out, *last = recurrent.layers(kind, steps, given, weights, *known_options, lengths)
    lengths = lengths.cpu()
    if index is not None:
        out, last = out.index_select(1, index), [s.index_select(1, index) for s in last]
        lengths = sort(lengths, descending=True)[0]
    return pack(out, lengths, False)[0], *last


def body(kind: str) -> Callable[..., Callable[..., Any]]:
    """What to run in place of a recurrent layer with these arguments."""

    def packed(*args: Any) -> tuple[Tensor, ...]:
        return layers(kind, *args)

    def padded(*args: Any) -> tuple[Tensor, ...]:
        return recurrent.layers(kind, *args)

    def choose(*args: Any) -> Callable[..., Any]:
        return packed if isinstance(args[3], (list, tuple)) else padded

    return choose


def _remember(t: Tensor, name: str, origin: Any, *parts: Tensor) -> None:
    """Attach a tensor's origin to it, valid until either is changed in place."""
    with torch._C.DisableTorchFunction():
        setattr(t, name, (origin, _version(t), [(part, _version(part)) for part in parts]))


def _recall(t: Tensor, name: str) -> Any:
    origin, version, parts = getattr(t, name, (None, None, []))
    with torch._C.DisableTorchFunction():
        if origin is None or t._backward_hooks:  # hooks read the gradients on this path
            return None
        unchanged = _version(t) == version and all(_version(part) == v for part, v in parts)
        return origin if unchanged else None


def _version(t: Tensor) -> int | None:
    return None if t.is_inference() else t._version


def _in_own_order(state: Tensor, steps: Tensor, back: Tensor | None) -> Tensor:
    """Initial states of the samples; PyTorch's own are zeros, made for as many as were packed."""
    if _is_zero(state):
        return steps.new_zeros(state.shape, dtype=state.dtype)
    return state if back is None else state.index_select(1, back)


def _is_zero(state: Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return not state.requires_grad and not bool(state.any())


def _agree(moved: _Moved, own: Tensor, lengths: Tensor) -> bool:
    """Whether the samples were permuted in the same way as their lengths."""
    with torch._C.DisableTorchFunction():
        order = moved.order.to(own.device)
        if order.shape != own.shape:
            return False
        permuted = order.sort().values == torch.arange(
            len(own), device=own.device, dtype=torch.int64
        )
        return bool((permuted & (own[order] == lengths)).all())


def _is_inverse(index: Tensor, back: Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        if index.shape != back.shape or index.dim() != 1:
            return False
        return bool(
            (index[back] == torch.arange(len(back), device=back.device, dtype=torch.int64)).all()
        )


def _inverse(index: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return index.argsort()
