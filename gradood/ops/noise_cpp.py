"""Noise and votes in C++ on the CPU; formulas as in ``reference.py``."""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from gradood.ops.addresses import address
from gradood.ops.philox import channels_and_elements

_MODES = {"argmax": 0, "above": 1, "histogram": 2}


def reject(op: str, *args: object) -> str | None:
    """Return why the kernels cannot serve a call, or None."""
    first = args[0]
    assert isinstance(first, Tensor)
    if op in ("noisy_batch", "grid_batch") and first.dtype != torch.float32:
        return f"x is {first.dtype}, not float32"
    if op == "vote_count" and args[2] not in _MODES:
        return f"no mode {args[2]!r}"
    return None


def noisy_batch(
    kernels: ModuleType,
    x: Tensor,
    rows: Tensor,
    inputs: Tensor,
    samples: Tensor,
    key: Tensor,
    sigma: float,
    low: float | None,
    high: float | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """See ``reference.noisy_batch``."""
    x, rows, inputs, samples = (t.contiguous() for t in (x, rows, inputs, samples))
    half = dtype == torch.bfloat16
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(
        (len(rows), *x.shape[1:]),
        dtype=dtype if half else torch.float32,
        memory_format=layout,
        device="cpu",
    )
    if out.numel() == 0:
        return out.to(dtype)
    if mean is not None and rstd is not None:
        mean, rstd = mean.float().contiguous(), rstd.float().contiguous()
    else:
        mean = rstd = None
    _check_rows(rows, len(x))
    seed, tag = key.tolist()
    channels, elements = channels_and_elements(tuple(x.shape[1:]))
    copies, dense = (len(rows),), layout if out.dim() == 4 else torch.contiguous_format
    kernels.noisy_batch(
        address(x, torch.float32, tuple(x.shape)),
        channels,
        elements,
        len(rows),
        *(address(t, torch.int64, copies) for t in (rows, inputs, samples)),
        seed,
        tag,
        sigma,
        -math.inf if low is None else low,
        math.inf if high is None else high,
        *(0 if t is None else address(t, torch.float32, (channels,)) for t in (mean, rstd)),
        address(out, out.dtype, tuple(out.shape), dense),
        int(half),
        int(channels_last),
        torch.get_num_threads(),
    )
    return out.to(dtype)


def grid_batch(
    kernels: ModuleType,
    x: Tensor,
    rows: Tensor,
    inputs: Tensor,
    samples: Tensor,
    key: Tensor,
    sigma: float,
    levels: float,
    low: float | None,
    high: float | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """See ``grid.grid_batch``."""
    x, rows, inputs, samples = (t.contiguous() for t in (x, rows, inputs, samples))
    half = dtype == torch.bfloat16
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(
        (len(rows), *x.shape[1:]),
        dtype=dtype if half else torch.float32,
        memory_format=layout,
        device="cpu",
    )
    if out.numel() == 0:
        return out.to(dtype)
    _check_rows(rows, len(x))
    dense = layout if out.dim() == 4 else torch.contiguous_format
    kernels.grid_batch(
        address(x, torch.float32, tuple(x.shape)),
        *channels_and_elements(tuple(x.shape[1:])),
        len(rows),
        *(address(t, torch.int64, (len(rows),)) for t in (rows, inputs, samples)),
        *key.tolist(),
        sigma,
        levels,
        -math.inf if low is None else low,
        math.inf if high is None else high,
        address(out, out.dtype, tuple(out.shape), dense),
        int(half),
        int(channels_last),
        torch.get_num_threads(),
    )
    return out.to(dtype)


def vote_count(
    kernels: ModuleType,
    values: Tensor,
    rows: Tensor,
    mode: str,
    thresholds: Tensor | None,
    inputs: int,
) -> Tensor:
    """See ``reference.vote_count``."""
    values, rows = values.float().contiguous(), rows.contiguous()
    thresholds = values.new_empty(0) if thresholds is None else thresholds.float().contiguous()
    width = values.shape[1] if mode == "argmax" else 1
    columns = {"argmax": width, "above": len(thresholds), "histogram": len(thresholds) + 1}[mode]
    counts = torch.zeros(inputs, columns + 1, dtype=torch.int64, device="cpu")
    if len(rows):
        _check_rows(rows, inputs)
        kernels.vote_count(
            _MODES[mode],
            address(values, torch.float32, (len(rows), width)[: values.dim()]),
            address(rows, torch.int64, (len(rows),)),
            len(rows),
            width,
            address(thresholds, torch.float32, (len(thresholds),)),
            len(thresholds),
            address(counts, torch.int64, (inputs, columns + 1)),
            columns + 1,
        )
    return counts


def _check_rows(rows: Tensor, count: int) -> None:
    """A row that does not exist would be read, or written, beyond the tensor."""
    low, high = rows.aminmax()
    if low < 0 or high >= count:
        raise IndexError(f"rows {int(low)} to {int(high)} of {count}")
