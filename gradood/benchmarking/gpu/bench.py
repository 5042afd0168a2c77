"""What gradient norms cost on a GPU, beside forward and backward passes and other packages.

Medians and the 20th and 80th percentiles of ``triton.testing.do_bench``, peak memory above the
model and the input, and how much of the roofline the norm kernels reach: their least time over the
time that the norms add to a backward pass that only differentiates activations.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradood.benchmarking import methods, registry
from gradood.benchmarking.gpu.operator_calls import record
from gradood.benchmarking.gpu.roofline import least_milliseconds, peaks
from gradood.benchmarking.workloads import Workload
from gradood.gradients import gradient_norms

GRADOOD, GRAPH = "gradood triton", "gradood triton, CUDA graph"


@dataclass(frozen=True)
class Row:
    """One method on one model; times in milliseconds, memory in MB."""

    model: str
    batch: int
    dtype: str
    method: str
    device: str
    torch: str
    median_ms: float | None
    p20_ms: float | None
    p80_ms: float | None
    peak_mb: float | None
    ratio_forward_backward: float | None
    least_ms: float | None
    share_of_roofline: float | None
    note: str


def measure(
    workloads: Sequence[Workload], dtype: torch.dtype, say: Callable[[str], None]
) -> Iterator[list[Row]]:
    """Rows of every method, a model at a time. Needs a CUDA device."""
    name = torch.cuda.get_device_name()
    for workload in workloads:
        rows = []
        for method, prepare in _methods().items():
            say(f"{workload.model}: {method}")
            rows.append(_row(workload, dtype, method, prepare, name))
        rates = peaks(name)
        calls = record(*replace(workload, batch=2).build())
        least = rates and least_milliseconds(calls, workload.batch, dtype, rates)
        yield _related(rows, least)


def write(rows: Sequence[Row], path: Path) -> None:
    """Append rows to a CSV file, with a header if it is new."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        if new:
            writer.writeheader()
        writer.writerows(map(asdict, rows))


def _methods() -> dict[str, Callable[[nn.Module, bool], methods.Call]]:
    known = registry.METHODS
    through = {name: known[name].prepare for name in (registry.FORWARD, registry.ACTIVATION_ONLY)}
    others = (registry.TORCH, "vmap chunks of 16", "Opacus ghost", "BackPACK")
    return (
        through
        | {registry.FORWARD_BACKWARD: known[registry.FORWARD_BACKWARD].prepare}
        | {GRADOOD: methods.through_backend("triton"), GRAPH: _graph}
        | {name: known[name].prepare for name in others}
    )


def _graph(model: nn.Module, autocast: bool) -> methods.Call:
    def call(x: Tensor) -> methods.Norms:
        norms = gradient_norms(model, x, cuda_graph=True)
        return dict(zip(norms.names, norms.values.unbind(1), strict=True))

    return call


def _row(workload: Workload, dtype: torch.dtype, method: str, prepare: Any, device: str) -> Row:
    from triton.testing import do_bench

    times: list[float | None] = [None, None, None]
    peak, note = None, ""
    try:
        model, x = workload.build()
        model, x = model.to("cuda", dtype), x.to("cuda", dtype)
        call = prepare(model, False)
        call(x)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(x)
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6
        times = list(do_bench(lambda: call(x), quantiles=[0.5, 0.2, 0.8]))
    except Exception as error:  # a peer that fails is a result
        note = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    package = {"Opacus ghost": "opacus", "BackPACK": "backpack-for-pytorch"}.get(method)
    if package is not None and not note:
        note = f"{package} {_version(package)}"
    kind = str(dtype).removeprefix("torch.")
    median, p20, p80 = times
    return Row(workload.model, workload.batch, kind, method, device, torch.__version__,
               median, p20, p80, peak, None, None, None, note)  # fmt: skip


def _related(rows: list[Row], least: float | None) -> list[Row]:
    """Fill in what compares methods."""
    times = {row.method: row.median_ms for row in rows}
    base, floor = times.get(registry.FORWARD_BACKWARD), times.get(registry.ACTIVATION_ONLY)
    related = []
    for row in rows:
        ratio = row.median_ms / base if row.median_ms and base else None
        ours = row.method in (GRADOOD, GRAPH)
        share = None
        if ours and least and row.median_ms and floor and row.median_ms > floor:
            share = least / (row.median_ms - floor)
        values = asdict(row) | {
            "ratio_forward_backward": ratio,
            "least_ms": least if ours else None,
            "share_of_roofline": share,
        }
        related.append(Row(**values))
    return related


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
