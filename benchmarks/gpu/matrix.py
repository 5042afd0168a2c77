"""Every kernel compiled by every version of Triton that a promised PyTorch brings, for every GPU.

``python -m benchmarks.gpu.matrix --out benchmarks/results/triton_matrix`` installs each
version into a folder of its own, compiles every launch case for every target in a process of its
own, since some compilers end it, and writes ``….json`` and ``….md``. With ``--models`` what whole
models launch is compiled in place of the cases. Nothing runs on a GPU. Before 3.6 AMD's targets
need a linker of LLVM 17 or later, ``TRITON_HIP_LLD_PATH=…/ld.lld``; an older one says ``unknown
abi version``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from gradood.errors import BackendError, first_line

#: By version of Triton, the versions of PyTorch that bring it.
VERSIONS = {
    "3.2.0": "2.6",
    "3.3.1": "2.7",
    "3.4.0": "2.8",
    "3.5.1": "2.9",
    "3.6.0": "2.10, 2.11",
    "3.7.1": "2.12, 2.13",
    "3.8.0": "2.14",
}
TARGETS = ("sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


Calls = Sequence[tuple[str, Sequence[Any]]]


def cases(parts: Sequence[str]) -> Iterator[tuple[str, Calls]]:
    """Every launch case whose name holds one of the parts, or every one."""
    from gradood.benchmarking.gpu.launch_cases import launch_cases

    for name, case in launch_cases().items():
        if not parts or any(part in name for part in parts):
            yield name, [(case.operator, case.make())]


def models(parts: Sequence[str]) -> Iterator[tuple[str, Calls]]:
    """What the norms of whole models call, in half precision; see ``model_launches``."""
    from benchmarks.gpu import model_launches
    from gradood.benchmarking.gpu.operator_calls import record

    for name in model_launches.MODELS:
        if not parts or any(part in name for part in parts):
            recorded = record(*model_launches.model(name))
            yield name, list(model_launches.made(recorded, torch.bfloat16))


def compiled(target: str, calls: Calls) -> dict[str, Any]:
    """What becomes of calls with the Triton of this process, as ``state`` and ``detail``."""
    from benchmarks.gpu.dry_driver import dry
    from benchmarks.gpu.resources import resources
    from gradood import pending
    from gradood.ops import triton_backend

    refused, told = set(), []
    try:
        for _ in range(2):  # what is compiled is launched in a shorter way
            sums: dict[Any, pending.Sums] = {}
            with dry(target) as launches, pending.held(sums):
                for operator, arguments in calls:
                    reason = triton_backend.reject(operator, *arguments)
                    if reason is None:
                        getattr(triton_backend, operator)(*arguments)
                    else:
                        refused.add(reason)
                pending.finish(sums)
            told.append([launch.told for launch in launches])
    except Exception as error:  # a compiler's, of any kind
        cause = error.__cause__ or error
        return {"state": "fails", "detail": f"{type(cause).__name__}: {first_line(cause)}"}
    if told[0] != told[1]:
        return {"state": "fails", "detail": "a second launch is told something else"}
    if refused:
        return {"state": "refused", "detail": "; ".join(sorted(refused))}
    distinct = {launch.compiled.hash: launch for launch in launches}.values()
    spilled = Counter[str]()
    for launch in distinct:
        spilled[launch.kernel] += resources(launch, target)["spilled"]
    detail = dict(+spilled)
    return {"state": "spills" if detail else "compiles", "detail": detail or ""}


Table = dict[str, dict[str, dict[str, Any]]]


def matrix(
    versions: Sequence[str],
    targets: Sequence[str],
    folder: Path,
    what: Sequence[str] = (),
    processes: int = 2,
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What becomes of each case, a version of Triton and a target at a time.

    ``what`` are options of the process that compiles.

    Raises:
        BackendError: A version of Triton cannot be installed.
    """
    for version in versions:
        _install(version, folder)
    tasks = [(version, target) for version in versions for target in targets]
    with ThreadPoolExecutor(processes) as pool:
        found = pool.map(lambda task: _compile(*task, folder, what), tasks)
        for (version, target), rows in zip(tasks, found, strict=True):
            yield version, target, rows


def faults(table: Table) -> list[str]:
    """Cases that neither compile nor are refused; on NVIDIA's GPUs also those that spill."""
    return [
        f"Triton {version}, {target}, {name}: {row['state']} {row['detail']}"
        for version, targets in table.items()
        for target, rows in targets.items()
        for name, row in rows.items()
        if row["state"] == "fails" or (row["state"] == "spills" and target.startswith("sm_"))
    ]


def as_markdown(table: Table, models: bool = False) -> str:
    """A line a version of Triton; reasons below."""
    what, option = ("whole models", "_models --models") if models else ("the kernels", "_matrix")
    told = f"Models ({', '.join(_names(table))})" if models else "Launch cases"
    targets = [t for t in TARGETS if any(t in found for found in table.values())]
    table = {version: table[version] for version in sorted(table)}
    lines = [
        f"# What Triton makes of {what}, by version and GPU",
        "",
        f"{told} that compile; nothing ran on a GPU. An empty cell was not compiled, which",
        "`--missing` does; where the compiler spills, launches take other options. Again:",
        f"`python -m benchmarks.gpu.matrix --out benchmarks/results/triton{option}`.",
        "",
        f"| Triton | PyTorch | {' | '.join(targets)} |",
        f"| --- | --- |{' --- |' * len(targets)}",
    ]
    notes: list[str] = []
    for version, by_target in table.items():
        cells = [_cell(by_target[t], notes) if t in by_target else "" for t in targets]
        lines.append(f"| {version} | {VERSIONS.get(version, '')} | {' | '.join(cells)} |")
    numbered = [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    return "\n".join([*lines, *([""] if notes else []), *numbered]) + "\n"


def _names(table: Table) -> list[str]:
    return sorted({name for found in table.values() for rows in found.values() for name in rows})


def _cell(rows: dict[str, Any], notes: list[str]) -> str:
    compiled = sum(row["state"] in ("compiles", "spills") for row in rows.values())
    told: dict[str, None] = {}
    for name, row in rows.items():
        if row["state"] != "compiles":
            detail = row["detail"]
            if row["state"] == "spills":
                detail = f"{name}: " + ", ".join(f"{k} {n} bytes" for k, n in detail.items())
            told[f"{row['state']}: {detail}"] = None
    for note in told:
        if note not in notes:
            notes.append(note)
    marks = ", ".join(f"({notes.index(note) + 1})" for note in told)
    return f"{compiled} of {len(rows)} {marks}".strip()


def _install(version: str, folder: Path) -> None:
    import triton

    if version == triton.__version__ or (folder / version / "triton").exists():
        return
    options = ("--quiet", "--no-deps", "--target", str(folder / version))
    command = [sys.executable, "-m", "pip", "install", *options, f"triton=={version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BackendError(f"Triton {version} cannot be installed: {done.stderr.strip()[-300:]}")


def _compile(version: str, target: str, folder: Path, what: Sequence[str]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    root = str(Path(__file__).parents[2])
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as cache:
        paths = [str(folder / version), root, *filter(None, [kept.get("PYTHONPATH")])]
        environment = kept | {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": cache}
        if linker := shutil.which("ld.lld"):  # before 3.6 Triton brings none for AMD's GPUs
            environment.setdefault("TRITON_HIP_LLD_PATH", linker)
        command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--one", target]
        done = subprocess.run([*command, *what], env=environment, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    rows = {name: row for line in lines for name, row in line.items()}
    if done.returncode:
        ended = {"state": "fails", "detail": f"ends the process: {done.stderr.strip()[-300:]}"}
        rows["the process"] = ended
    return rows


def main() -> None:
    """Compile, write the table, and say what is wrong; exit status 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="files to write, without their suffix")
    parser.add_argument("--triton", nargs="*", default=list(VERSIONS), help="versions")
    parser.add_argument("--target", nargs="*", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--case", nargs="*", default=[], help="parts of names")
    parser.add_argument("--models", action="store_true", help="whole models in place of cases")
    parser.add_argument("--missing", action="store_true", help="only what the table lacks")
    parser.add_argument("--folder", type=Path, help="where versions of Triton are kept")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--one", choices=TARGETS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        for name, calls in (models if chosen.models else cases)(chosen.case):
            print(json.dumps({name: compiled(chosen.one, calls)}), flush=True)
        return
    path = None if chosen.out is None else chosen.out.with_suffix(".json")
    table: Table = {} if path is None or not path.exists() else json.loads(path.read_text())
    with tempfile.TemporaryDirectory() as empty:
        folder = chosen.folder or Path(empty)
        for version in chosen.triton:
            known = table.setdefault(version, {})
            targets = [t for t in chosen.target if not (chosen.missing and t in known)]
            what = [*["--models"] * chosen.models, "--case", *chosen.case]
            for _, target, rows in matrix([version], targets, folder, what, chosen.processes):
                known[target] = (known.get(target, {}) if chosen.case else {}) | rows
                if path is not None:
                    path.write_text(json.dumps(table, indent=1) + "\n")
    if chosen.out is not None:
        chosen.out.with_suffix(".md").write_text(as_markdown(table, chosen.models))
    print(as_markdown(table, chosen.models))
    wrong = faults(table)
    print("\n".join(wrong) or "Every case compiles without spills, or is refused with a reason.")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
