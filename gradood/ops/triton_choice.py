"""Which Triton kernel serves a linear layer or a convolution, once for tensors that lie alike."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

from torch import Tensor

from gradood.kernels import conv, conv3x3, depthwise, gram, outer, pixel_gram
from gradood.kernels.layout import Geometry
from gradood.kernels.prepared import arranged, prepared
from gradood.kernels.reduction import Stored, Summed
from gradood.ops import choice


def algorithm(op: str, *args: object) -> str:
    """Name the algorithm that serves a call."""
    if op == "linear_sqnorm":
        x, d = args[:2]
        assert isinstance(x, Tensor) and isinstance(d, Tensor)
        return choice.linear(d.shape[1], x.shape[-1], d.shape[2], choice.TRITON)
    if op == "conv_sqnorm":
        x, d, kernel_size, stride, padding, _, groups = args[:7]
        assert isinstance(x, Tensor) and isinstance(d, Tensor)
        shapes = (x.shape[1:], d.shape[1:])
        kind = choice.conv(*shapes, kernel_size, stride, padding, groups, choice.TRITON)  # type: ignore[arg-type]
        too_large = prod(x.shape[2:]) > pixel_gram.MOST_PIXELS
        return "direct" if kind == "shift_gram" and too_large else kind
    return "fused"


@prepared
def linear(x: Tensor, d: Tensor, bias: bool) -> Summed | Stored:
    """What computes both norms of a linear layer; x may come in rows."""
    match algorithm("linear_sqnorm", x, d):
        case "outer":
            return outer.prepare_rank_one(x[:, 0], d[:, 0], bias)
        case "gram":
            return gram.prepare(x, d, bias)
        case _:
            return outer.prepare(x, d, bias)


@prepared
def convolution(
    x: Tensor, d: Tensor, sizes: tuple[Any, ...], bias: bool
) -> Summed | Stored | pixel_gram.ShiftGram:
    """What computes both norms of a convolution of these sizes, ``dilation`` and groups last."""
    geometry = Geometry.of(*sizes)
    match algorithm("conv_sqnorm", x, d, *sizes):
        case "pointwise":
            tokens = partial(conv.pointwise_tokens, stride=sizes[1])
            x, d, arrange = arranged(tokens, x, d)
            return linear(x, d, bias)._replace(arrange=arrange)
        case "depthwise":
            return depthwise.prepare(x, d, geometry, bias)
        case "direct" if conv3x3.serves(x, d, geometry):
            return conv3x3.prepare(x, d, geometry, bias)
        case "shift_gram":
            return pixel_gram.prepare(x, d, geometry, bias)
        case _:
            return conv.prepare(x, d, geometry, bias)
