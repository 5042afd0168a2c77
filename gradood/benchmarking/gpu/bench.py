"""What gradient norms cost on a GPU that is full, beside ordinary passes and other packages.

Every call is timed by events on the device after L2 was overwritten, and waited for, whatever it
is: no method queues ahead of another. The report is one JSON file, written as it goes: the machine,
its driver, clocks and versions, and a row a method. Other packages are measured from a checkout.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradood.benchmarking import methods, registry
from gradood.benchmarking.gpu.device_facts import facts, smi
from gradood.benchmarking.gpu.isolation import isolated, run_items
from gradood.benchmarking.gpu.operator_calls import record
from gradood.benchmarking.gpu.roofline import least_milliseconds, peaks
from gradood.benchmarking.methods import Method
from gradood.benchmarking.timing import percentile
from gradood.benchmarking.workloads import Workload, workload
from gradood.errors import first_line
from gradood.gradients import gradient_norms

GRADOOD, GRAPH = "gradood triton", "gradood triton, CUDA graph"
#: Calls of a method: at least and at most so many, and no more after so many seconds; a method so
#: slow that fewer take ``SLOW`` seconds is called no more often.
LEAST, MOST, SECONDS, SLOW = 3, 50, 1.0, 10.0
#: Seconds after which no other method is measured: with the self-test, ten minutes.
DEADLINE = 400.0
#: Bytes that are written between calls: more than the L2 cache of any GPU.
FLUSHED = 256 << 20


@dataclass(frozen=True)
class Case:
    """A model, a batch that fills a GPU, a number type and a layout of images."""

    workload: Workload
    dtype: torch.dtype
    channels_last: bool = False

    @property
    def name(self) -> str:
        """For a title."""
        layout = ", channels last" if self.channels_last else ""
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.workload.model}, batch {self.workload.batch}, {kind}{layout}"

    def build(self, device: str) -> tuple[nn.Module, Tensor]:
        """The model, and a batch that is made on the device."""
        model, few = _two(self.workload)
        model = deepcopy(model).to(device, self.dtype)
        x = torch.randn(self.workload.batch, *few.shape[1:], dtype=self.dtype, device=device)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
            x = x.contiguous(memory_format=torch.channels_last)
        return model, x


def cases(workloads: Sequence[Workload] | None = None) -> list[Case]:
    """ResNet-50 with 256 images and ViT-B/16 with 128, at 224 pixels; or other models."""
    halves = torch.bfloat16, torch.float32
    if workloads is not None:
        return [Case(one, dtype) for one in workloads for dtype in halves]
    resnet = replace(workload("resnet50"), batch=256)
    vit = replace(workload("vit_b_16"), batch=128)
    kinds = (resnet, True), (resnet, False), (vit, False)
    return [Case(model, dtype, last) for dtype in halves for model, last in kinds]


@cache
def _two(of: Workload) -> tuple[nn.Module, Tensor]:
    """The model on the CPU and a batch of two; building takes longer than many a measurement."""
    return replace(of, batch=2).build()


@dataclass(frozen=True)
class Row:
    """One method on one case; times in milliseconds, memory in MB above model and batch."""

    model: str
    batch: int
    dtype: str
    channels_last: bool
    method: str
    calls: int = 0
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    peak_mb: float | None = None
    clock: str = ""
    ratio_forward_backward: float | None = None
    least_ms: float | None = None
    share_of_roofline: float | None = None
    note: str = ""


class Report:
    """The file to send, complete after every row."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self._facts = path, list[Row](), facts()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write(finished=False)

    def add(self, rows: Sequence[Row]) -> None:
        """Replace the rows of a case by what is known of it by now."""
        known = {(r.model, r.batch, r.dtype, r.channels_last, r.method): r for r in self.rows}
        known |= {(r.model, r.batch, r.dtype, r.channels_last, r.method): r for r in rows}
        self.rows = list(known.values())
        self.write(finished=False)

    def write(self, finished: bool) -> None:
        """All so far."""
        content = self._facts | {"finished": finished, "nvidia-smi now": smi()}
        content["rows"] = [asdict(row) for row in self.rows]
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(self.path)


def ways() -> dict[str, Method]:
    """By name, in the order in which they are measured."""
    try:
        peers: dict[str, Method] = import_module("benchmarks.peers").METHODS
    except ModuleNotFoundError:  # not in a checkout
        peers = {}
    known = registry.METHODS
    passes = (registry.FORWARD, registry.ACTIVATION_ONLY, registry.FORWARD_BACKWARD)
    return {
        **{name: known[name] for name in passes},
        GRADOOD: Method(methods.through_backend("triton"), "gradood"),
        GRAPH: Method(_graph, "gradood"),
        **{name: known[name] for name in (registry.TORCH, "vmap chunks of 16")},
        **{name: peers[name] for name in ("BackPACK", "Opacus ghost") if name in peers},
    }


Rows = Callable[[Case, Sequence[str], str], Iterator[Row]]


def measure(
    todo: Sequence[Case],
    names: Sequence[str],
    report: Report,
    say: Callable[[str], None],
    rows_of: Rows,
    device: str = "cuda",
) -> Iterator[list[Row]]:
    """Rows of every method, a case at a time, in the report after each.

    ``rows_of`` measures the named methods on a case: ``apart``, in a process of its own.
    """
    begin = time.perf_counter()
    for case in todo:
        say(case.name)
        rows: list[Row] = []
        late = time.perf_counter() - begin > DEADLINE
        found = iter(()) if late else rows_of(case, names, device)
        for row in found:
            rows.append(row)
            report.add(_related(rows, None))
            say(f"{case.name}: {row.method}")
            if time.perf_counter() - begin > DEADLINE:
                break
        known = {row.method for row in rows}
        note = f"not measured: {DEADLINE:.0f} s are over; choose models by --model"
        rows += [replace(_blank(case, name), note=note) for name in names if name not in known]
        related = _related(rows, None if late else _least(case, device))
        report.add(related)
        yield related
    report.write(finished=True)


def apart(case: Case, names: Sequence[str], device: str) -> Iterator[Row]:
    """A row a method, measured by another process, whatever becomes of the others."""
    kind = str(case.dtype).removeprefix("torch.")
    told = json.dumps([asdict(case.workload), kind, case.channels_last, device])
    seen = set()
    for found in isolated(names, [sys.executable, "-m", "gradood.benchmarking.gpu.bench", told]):
        if found.item in seen:  # the GPU's context was broken by a method that had failed
            continue
        seen.add(found.item)
        content = found.content
        yield (
            replace(_blank(case, found.item), note=found.reason)
            if content is None
            else Row(**content)
        )


def _blank(case: Case, name: str) -> Row:
    kind = str(case.dtype).removeprefix("torch.")
    return Row(case.workload.model, case.workload.batch, kind, case.channels_last, name)


def row_of(case: Case, name: str, method: Method, device: str) -> Row:
    """Measure one method; one that fails is a result, too."""
    row = _blank(case, name)
    try:
        model, x = case.build(device)
        call = method.prepare(model, False)
        times, peak = timed(lambda: call(x), device)
    except Exception as error:  # a peer that fails is a result
        return replace(row, note=f"{type(error).__name__}: {first_line(error)}")
    finally:
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    now = smi()
    return replace(
        row,
        calls=len(times),
        median_ms=statistics.median(times),
        p20_ms=percentile(times, 0.2),
        p80_ms=percentile(times, 0.8),
        peak_mb=peak,
        clock=now[0]["clocks.sm"] if now else "",
        note="" if method.package in ("torch", "gradood") else _version(method.package),
    )


def timed(call: Callable[[], object], device: str) -> tuple[list[float], float | None]:
    """Milliseconds of each call, and its peak memory in MB on a GPU.

    Each begins with nothing of it in L2, and is waited for before the next.
    """
    clock = _events if device == "cuda" else _seconds
    peak = None
    if device == "cuda":
        call()  # compiles
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6
    else:
        call()
    rubbish = torch.empty(FLUSHED if device == "cuda" else 1, dtype=torch.uint8, device=device)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < MOST:
        spent = time.perf_counter() - begin
        if times and spent > (SECONDS if len(times) >= LEAST else SLOW):
            break
        rubbish.zero_()
        times.append(clock(call))
    return times, peak


def _events(call: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()  # the first launch finds the GPU idle, whatever was called before
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def _graph(model: nn.Module, autocast: bool) -> methods.Call:
    def call(x: Tensor) -> methods.Norms:
        norms = gradient_norms(model, x, cuda_graph=True)
        return dict(zip(norms.names, norms.values.unbind(1), strict=True))

    return call


def _least(case: Case, device: str) -> float | None:
    """Least milliseconds of the norms' own work, if the peak rates of the GPU are known."""
    rates = peaks(torch.cuda.get_device_name()) if device == "cuda" else None
    if rates is None:
        return None
    return least_milliseconds(_calls(case.workload), case.workload.batch, case.dtype, rates)


@cache
def _calls(of: Workload) -> list[tuple[str, tuple[Any, ...]]]:
    return record(*_two(of))


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
        related.append(
            replace(
                row,
                ratio_forward_backward=ratio,
                least_ms=least if ours else None,
                share_of_roofline=share,
            )
        )
    return related


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} of unknown version"


def main() -> None:
    """Measure the named methods on a case; the parent reads what is printed."""
    told, *names = sys.argv[1:]
    workload, kind, last, device = json.loads(told)
    case, known = Case(Workload(**workload), getattr(torch, kind), last), ways()

    def found(name: str) -> Iterator[dict[str, Any]]:
        yield asdict(row_of(case, name, known[name], device))

    todo = {name: partial(found, name) for name in names}
    sys.exit(run_items(names, todo, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
