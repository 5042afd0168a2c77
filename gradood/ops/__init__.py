"""Squared norms of per-sample gradients, and noise: one schema an operator, several backends.

``x`` is an operator's input and ``d`` the loss gradient of its output, samples first; any strides,
float64, float32, bfloat16 or float16. Results are ``[N]``, float32 for half-precision inputs.
``channel_sums`` says what a layer made of a sample; ``batch_norm_sums`` is a layer that says so.
``reference.py`` states every formula.

Backends, in order of preference: Triton on CUDA, C++ on the CPU, PyTorch everywhere.
``GRADOOD_BACKEND=triton|cpp|torch`` forces one. A backend that cannot serve a call says why once,
in the log, and the next one takes the call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gradood.ops.dispatch import Served, dispatch, offers, tracing
from gradood.ops.vmap import merging

__all__ = [
    "Served",
    "bias_sqnorm",
    "channel_sums",
    "batch_norm_sums",
    "linear_sqnorm",
    "conv_sqnorm",
    "batch_norm_sqnorm",
    "batch_norm_backward_sqnorm",
    "layer_norm_sqnorm",
    "layer_norm_backward_sqnorm",
    "group_norm_sqnorm",
    "embedding_sqnorm",
    "grid_batch",
    "noisy_batch",
    "vote_count",
    "offers",
    "tracing",
]

_GEOMETRY = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups"
_SCHEMAS = {
    "bias_sqnorm": "(Tensor d) -> Tensor",
    "linear_sqnorm": "(Tensor x, Tensor d, bool bias) -> (Tensor, Tensor)",
    "conv_sqnorm": f"(Tensor x, Tensor d, {_GEOMETRY}, bool bias) -> (Tensor, Tensor)",
    "batch_norm_sqnorm": (
        "(Tensor x, Tensor d, Tensor mean, Tensor variance, float eps) -> (Tensor, Tensor)"
    ),
    "batch_norm_backward_sqnorm": (
        "(Tensor x, Tensor d, Tensor mean, Tensor variance, Tensor? weight, float eps) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    "layer_norm_sqnorm": "(Tensor x, Tensor d, float eps, bool rms) -> (Tensor, Tensor)",
    "layer_norm_backward_sqnorm": (
        "(Tensor x, Tensor d, Tensor scale, float eps, bool rms) -> (Tensor, Tensor, Tensor)"
    ),
    "group_norm_sqnorm": "(Tensor x, Tensor d, int groups, float eps) -> (Tensor, Tensor)",
    "embedding_sqnorm": "(Tensor indices, Tensor d, int padding_idx) -> Tensor",
}

_LIBRARY = torch.library.Library("gradood", "DEF")


def _define(name: str, schema: str, fake: Callable[..., Any]) -> None:
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, partial(dispatch, name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"gradood::{name}", fake, lib=_LIBRARY)


def _register(name: str, schema: str) -> None:
    def fake(*args: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
        d = args[0] if name == "bias_sqnorm" else args[1]
        assert isinstance(d, torch.Tensor)
        dtype = d.dtype
        for t in args[:2]:
            if isinstance(t, torch.Tensor) and t.is_floating_point():
                dtype = torch.promote_types(dtype, t.dtype)
        if dtype in (torch.float16, torch.bfloat16):
            dtype = torch.float32
        norm = d.new_empty(d.shape[0], dtype=dtype)
        if "(Tensor, Tensor, Tensor)" in schema:
            like = d if name == "batch_norm_backward_sqnorm" else args[0]
            return norm, torch.empty_like(norm), torch.empty_like(like)
        if "(Tensor, Tensor)" not in schema:
            return norm
        with_bias = args[-1] if schema.find("bool bias") > 0 else True
        return norm, d.new_empty(d.shape[0] if with_bias else 0, dtype=dtype)

    _define(name, schema, fake)
    _map(name, 1 if name == "bias_sqnorm" else 2)


def _map(name: str, sample_tensors: int) -> None:
    rule = merging(name, getattr(torch.ops.gradood, name), sample_tensors)
    torch.library.register_vmap(f"gradood::{name}", rule, lib=_LIBRARY)


def _fake_channel_sums(a: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(a.dtype, torch.float32)
    return a.new_empty((a.shape[0], 2, a.shape[1]), dtype=dtype)


def _fake_batch_norm_sums(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), _fake_channel_sums(x)


def _fake_noisy_batch(x: torch.Tensor, rows: torch.Tensor, *options: Any) -> torch.Tensor:
    dtype, channels_last = options[-2:]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (rows.shape[0], *x.shape[1:])
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=layout)


def _fake_vote_count(
    values: torch.Tensor,
    rows: torch.Tensor,
    mode: str,
    thresholds: torch.Tensor | None,
    inputs: int,
) -> torch.Tensor:
    columns = values.shape[1] + 1 if thresholds is None else thresholds.shape[0] + 1
    columns += mode == "histogram"
    return values.new_empty((inputs, columns), dtype=torch.int64)


_define(
    "noisy_batch",
    "(Tensor x, Tensor rows, Tensor inputs, Tensor samples, Tensor key, float sigma, float? low, "
    "float? high, Tensor? mean, Tensor? rstd, ScalarType dtype, bool channels_last) -> Tensor",
    _fake_noisy_batch,
)
_define(
    "grid_batch",
    "(Tensor x, Tensor rows, Tensor inputs, Tensor samples, Tensor key, float sigma, "
    "float levels, float? low, float? high, ScalarType dtype, bool channels_last) -> Tensor",
    _fake_noisy_batch,
)
_define(
    "vote_count",
    "(Tensor values, Tensor rows, str mode, Tensor? thresholds, int inputs) -> Tensor",
    _fake_vote_count,
)


_define("channel_sums", "(Tensor a) -> Tensor", _fake_channel_sums)
_define(
    "batch_norm_sums",
    "(Tensor x, Tensor mean, Tensor variance, Tensor? weight, Tensor? bias, float eps) "
    "-> (Tensor, Tensor)",
    _fake_batch_norm_sums,
)
_map("channel_sums", 1)
_map("batch_norm_sums", 1)

for _name, _schema in _SCHEMAS.items():
    _register(_name, _schema)


def _operator(name: str) -> Callable[..., Any]:
    """A registered operator; where no mode or transform is active, without the dispatcher."""
    registered = getattr(torch.ops.gradood, name).default

    def call(*args: Any) -> Any:
        plain = type(args[0]) is torch.Tensor and not torch._C._len_torch_dispatch_stack()
        plain = plain and torch._C._functorch.peek_interpreter_stack() is None
        if plain and not torch.compiler.is_compiling():
            return dispatch(name, *args)
        return registered(*args)

    return call


bias_sqnorm = _operator("bias_sqnorm")
channel_sums = _operator("channel_sums")
batch_norm_sums = _operator("batch_norm_sums")
linear_sqnorm = _operator("linear_sqnorm")
conv_sqnorm = _operator("conv_sqnorm")
batch_norm_sqnorm = _operator("batch_norm_sqnorm")
batch_norm_backward_sqnorm = _operator("batch_norm_backward_sqnorm")
layer_norm_sqnorm = _operator("layer_norm_sqnorm")
layer_norm_backward_sqnorm = _operator("layer_norm_backward_sqnorm")
group_norm_sqnorm = _operator("group_norm_sqnorm")
embedding_sqnorm = _operator("embedding_sqnorm")
grid_batch = _operator("grid_batch")
noisy_batch = _operator("noisy_batch")
vote_count = _operator("vote_count")
