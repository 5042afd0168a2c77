"""``gradood bench --cuda``: the same comparison on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from gradood.errors import BackendError

if TYPE_CHECKING:
    from gradood.benchmarking.gpu.bench import Row
    from gradood.benchmarking.workloads import Workload


def on_gpu(workloads: Sequence[Workload] | None, out: Path) -> None:
    """Measure, print and write ``cuda.json``; without models, ResNet-50 and ViT-B/16."""
    import torch

    from gradood.benchmarking.gpu import bench
    from gradood.ops.dispatch import load

    missing = load("triton")[1]
    if missing is not None or not torch.cuda.is_available():
        raise BackendError(f"bench --cuda: {missing or 'needs a GPU'}")
    console, report = Console(), bench.Report(out / "cuda.json")
    with Console(stderr=True).status("") as status:
        found = bench.measure(
            bench.cases(workloads),
            list(bench.ways()),
            report,
            lambda t: status.update(f"{t} …"),
            bench.apart,
        )
        for rows in found:
            console.print(_table(rows))
    console.print(f"Results: {report.path.resolve()}", highlight=False, soft_wrap=True)


def _table(rows: Sequence[Row]) -> Table:
    table = Table("method", "ms", "20 %", "80 %", "/ (b)", "peak MB", "roofline", "note",
                  title=f"{rows[0].model}, batch {rows[0].batch}, {rows[0].dtype}"
                        f"{', channels last' * rows[0].channels_last}")  # fmt: skip
    for row in rows:
        numbers = (row.median_ms, row.p20_ms, row.p80_ms, row.ratio_forward_backward, row.peak_mb)
        share = "" if row.share_of_roofline is None else f"{row.share_of_roofline:.0%}"
        table.add_row(row.method, *("" if n is None else f"{n:.2f}" for n in numbers), share,
                      row.note)  # fmt: skip
    return table
