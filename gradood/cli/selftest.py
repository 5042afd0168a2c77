"""``gradood selftest``: are this machine's arithmetic and the kernels right?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gradood.errors import BackendError

if TYPE_CHECKING:
    from gradood.benchmarking.operators import Check

_DEFAULT_OUT = Path("gradood-selftest.json")


def selftest(
    cuda: Annotated[bool, typer.Option("--cuda", help="Check the Triton kernels.")] = False,
    out: Annotated[Path, typer.Option(help="File for the results.")] = _DEFAULT_OUT,
) -> None:
    """Check this machine's arithmetic, or a GPU's kernels; writes a file to attach to an issue.

    Without options: PyTorch, the libraries under it and gradood's kernels on the CPU, with one
    thread and with two, against independent computations; for what is wrong, whether gradood does
    without it. With --cuda: the Triton kernels (under TRITON_INTERPRET=1 on the CPU, without sizes
    that would take hours).

    Exit status: 0 if everything that gradood relies on is right, 1 if not.
    """
    if cuda:
        _check_gpu(out)
    else:
        _check_machine(out)


def _check_machine(out: Path) -> None:
    import torch

    from gradood.benchmarking.arithmetic import verdicts
    from gradood.benchmarking.machine import processor

    table = Table("operation", "threads", "", "detail", box=None, pad_edge=False)
    found = []
    with Console(stderr=True).status("with one thread and with two …"):
        for verdict in verdicts():
            found.append(verdict)
            state = "[green]right[/green]" if verdict.right else "[red]WRONG[/red]"
            detail = verdict.detail
            if not verdict.right:
                detail += (
                    f"; avoided: {verdict.avoided}" if verdict.avoided else "; gradood needs it"
                )
            table.add_row(verdict.name, str(verdict.threads), state, detail)
    failed = [f"{v.name} ({v.threads} threads)" for v in found if not v.passed]
    content = {
        "processor": processor(),
        "torch": torch.__version__,
        "failed": failed,
        "checks": [v._asdict() for v in found],
    }
    out.write_text(json.dumps(content, indent=1) + "\n")
    console = Console()
    console.print(table)
    _conclude(console, failed, "Everything that gradood relies on is right.", out)


def _conclude(console: Console, failed: list[str], good: str, out: Path) -> None:
    verdict = f"FAILED: {', '.join(failed)}" if failed else good
    console.print(verdict, style="red" if failed else "green", highlight=False)
    console.print(f"Results: {out.resolve()}", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


def _check_gpu(out: Path) -> None:
    from gradood.ops.dispatch import load

    missing = load("triton")[1]
    if missing is not None:
        raise BackendError(f"selftest --cuda: {missing}")
    from gradood.benchmarking.gpu.selftest import checks, report

    console = Console()
    found: list[Check] = []
    with Console(stderr=True).status("") as status:
        content = report(found, out, finished=False)
        for check in checks():
            found.append(check)
            content = report(found, out, finished=False)
            status.update(f"{check.name} …")
    content = report(found, out)
    console.print(_table(found))
    console.print(f"Device: {content['device']}, {content['target']}.", highlight=False)
    if not content["measured on a GPU"]:
        console.print("Nothing of this was measured on a GPU.", highlight=False)
    _conclude(console, content["failed"], f"All {len(found)} checks passed.", out)


def _table(found: list[Check]) -> Table:
    table = Table("check", "", "detail", "ms", "roofline", box=None, pad_edge=False)
    for check in found:
        time = "" if check.milliseconds is None else f"{check.milliseconds:.3f}"
        share = "" if check.share_of_roofline is None else f"{check.share_of_roofline:.0%}"
        state = "[green]ok[/green]" if check.passed else "[red]FAILED[/red]"
        table.add_row(check.name, state, check.detail, time, share)
    return table
