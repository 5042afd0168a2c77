"""Places in the autograd graph where a gradient is received, and where the graph begins and ends.

``watch`` gives the gradient of an operator's output to a hook. Where nothing before the operator
needs a gradient, autograd would record nothing: ``Anchor`` begins the graph there. ``End`` is a
scalar to start the backward pass from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Anchor(torch.autograd.Function):
    """Start the autograd graph at a tensor without copying it.

    Marking the tensor as changed gives it a place in the graph without making it a leaf, so the
    model may still change it in place.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, anchor: Tensor) -> Tensor:
        """Return ``tensor`` itself, now part of the graph."""
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        """Pass the gradient on; the anchor gets none."""
        return gradients[0], None


class TakenOver(torch.autograd.Function):
    """An operator whose backward pass is replaced."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, compute: Callable[[], Tensor], backward: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return what ``compute`` does."""
        ctx.take_over = backward
        return compute()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        """Turn the gradient of the output into that of ``x``."""
        return ctx.take_over(gradients[0]), None, None


class End(torch.autograd.Function):
    """A scalar whose gradient with respect to the logits is given.

    The same as ``grad_outputs``, whose shapes PyTorch compares with the help of a library for
    symbolic mathematics: a second to load, and half a millisecond a call.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, gradient: Tensor) -> Tensor:
        """Return a zero that depends on the logits."""
        ctx.gradient = gradient
        return logits.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        """Return the given gradient."""
        return ctx.gradient, None


def own(out: Tensor) -> Tensor:
    """An output that is no view: in-place changes of one rewrite its history, and drop hooks."""
    if not out._is_view():
        return out
    same: Tensor = torch.ops.aten._unsafe_view.default(out, out.shape)
    return same


def watch(
    out: Tensor, anchor: Tensor, hook: Callable[[Tensor], object], always: bool = False
) -> Tensor:
    """Call ``hook`` with the gradient of an operator's output.

    ``always`` anchors outputs that are in a graph already, which may not lead to the anchor.
    """
    out = own(out)
    if always or not out.requires_grad:
        out = Anchor.apply(out, anchor)
    place = out.output_nr
    # A hook of the node, not of the tensor: hooks that the model adds to the tensor come first.
    node: Any = out.grad_fn

    def receive(gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[place]
        if gradient is not None:
            hook(gradient)

    node.register_prehook(receive)
    return out
