"""``gradood bench --cuda``: the same comparison on a GPU, or its launches compiled without one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from gradood.errors import BackendError

if TYPE_CHECKING:
    from gradood.benchmarking.gpu.bench import Row
    from gradood.benchmarking.workloads import Workload


def on_gpu(workloads: Sequence[Workload], dry: str | None, out: Path) -> None:
    """Measure, print and write ``cuda.csv``; with ``dry`` only compile, and write a JSON file."""
    import torch

    from gradood.benchmarking.gpu import bench
    from gradood.ops.dispatch import load

    console = Console()
    if dry is not None:
        _dry(workloads, dry, out, console)
        return
    missing = load("triton")[1]
    if missing is not None or not torch.cuda.is_available():
        raise BackendError(f"bench --cuda: {missing or 'needs a GPU'}; --dry sm_90 only compiles")
    with Console(stderr=True).status("") as status:
        for rows in bench.measure(workloads, torch.bfloat16, lambda t: status.update(f"{t} …")):
            bench.write(rows, out / "cuda.csv")
            console.print(_table(rows))
    console.print(f"Results: {(out / 'cuda.csv').resolve()}", highlight=False, soft_wrap=True)


def _table(rows: Sequence[Row]) -> Table:
    table = Table("method", "ms", "20 %", "80 %", "/ (b)", "peak MB", "roofline", "note",
                  title=f"{rows[0].model}, batch {rows[0].batch}, {rows[0].device}")  # fmt: skip
    for row in rows:
        numbers = (row.median_ms, row.p20_ms, row.p80_ms, row.ratio_forward_backward, row.peak_mb)
        share = "" if row.share_of_roofline is None else f"{row.share_of_roofline:.0%}"
        table.add_row(row.method, *("" if n is None else f"{n:.2f}" for n in numbers), share,
                      row.note)  # fmt: skip
    return table


def _dry(workloads: Sequence[Workload], target: str, out: Path, console: Console) -> None:
    import torch

    from gradood.benchmarking.gpu import bench

    found = []
    with Console(stderr=True).status("") as status:
        for row in bench.dry(workloads, torch.bfloat16, target, lambda t: status.update(f"{t} …")):
            found.append(row)
    table = Table("model", "batch", "launches", "kernels", "spilled", "least ms (computed)")
    for row in found:
        least = "" if row["least ms"] is None else f"{row['least ms']:.3f}"
        numbers = (row["batch"], row["launches"], row["compiled"], row["spilled"])
        table.add_row(row["model"], *map(str, numbers), least)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"cuda-dry-{target}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    console.print(table)
    console.print(f"Compiled for {target}; nothing was measured on a GPU.", highlight=False)
    console.print(f"Results: {path.resolve()}", highlight=False, soft_wrap=True)
