"""``gradood info``: versions, hardware, backends and data, and for what is missing the reason."""

from __future__ import annotations

import json
import os
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "safetensors", "matplotlib", "triton")
_BACKENDS = ("triton", "cpp", "torch")
_FIGURES = (
    "kernels are tested in Triton's interpreter and compiled for sm_80, sm_89, sm_90, sm_100, "
    "sm_120, gfx942 and gfx950; no figure was measured on a GPU (gradood selftest --cuda does)"
)


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show versions, hardware, backends and data sets, and why something is missing."""
    facts = collect()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for section, entries in facts.items():
        table.add_row(f"[underline]{section}[/underline]", "")
        for name, value in entries.items():
            table.add_row(f"  {name}", _shown(value))
    Console().print(table, highlight=False)


def collect() -> dict[str, dict[str, Any]]:
    """Everything that ``gradood info`` shows, as JSON values, by section."""
    return {
        "versions": dict(versions()),
        "cpu": _cpu(),
        "cuda": _cuda(),
        "backends": _backends(),
        "data sets": _data_sets(),
    }


def versions() -> dict[str, str | None]:
    """Versions by package; None for one that is not installed."""
    found: dict[str, str | None] = {"gradood": _version("gradood")}
    found["python"] = platform.python_version()
    return found | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    import torch

    from gradood.progress import cores

    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
    }


def _cuda() -> dict[str, Any]:
    import torch

    from gradood.ops.gpu_state import without_gpu

    missing = without_gpu()
    if missing is not None:
        return {"available": False, "problem": missing.kind, "reason": missing.sentence}
    devices = {}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"device {index}"] = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"compute capability {properties.major}.{properties.minor}"
        )
    return {"available": True, "version": torch.version.cuda, **devices}


def _backends() -> dict[str, Any]:
    from gradood.ops.dispatch import left, load

    reasons = {name: load(name)[1] for name in _BACKENDS}
    states = {name: _state(reason is None, reason) for name, reason in reasons.items()}
    states["triton"] |= _triton_problem()
    states["triton"]["figures"] = _FIGURES
    if failed := left():
        states["left while running"] = _state(
            False, "; ".join(f"{k}: {v}" for k, v in failed.items())
        )
    return states | {"GRADOOD_BACKEND": os.environ.get("GRADOOD_BACKEND", "auto")}


def _triton_problem() -> dict[str, str]:
    """Which layer between Python and a GPU is missing, in two words."""
    from gradood.ops.dispatch import load

    module = load("triton")[0]
    if module is None:
        try:
            module = import_module("gradood.ops.triton_backend")
        except Exception:  # the reason says how it fails to load
            return {"problem": "Triton does not load"}
    found = module.problem()
    return {} if found is None else {"problem": found.kind}


def _data_sets() -> dict[str, Any]:
    from gradood.data import EMBEDDED, embedded_set

    return {f"embedded {name}": _embedded(len(embedded_set(name))) for name in EMBEDDED}


def _embedded(pictures: int) -> dict[str, Any]:
    return _state(True, f"{pictures} pictures")


def _state(available: bool, detail: str | None) -> dict[str, Any]:
    return {"available": available, "detail" if available else "reason": detail}


def _shown(value: Any) -> str:
    """A fact in words; square brackets would be taken for markup."""
    if isinstance(value, dict):
        detail = value.get("detail") or value.get("reason")
        state = "[green]yes[/green]" if value["available"] else "[yellow]no[/yellow]"
        shown = (text for text in (value.get("problem"), detail, value.get("figures")) if text)
        return ", ".join([state, *map(_shown, shown)])
    if value is None:
        return "[yellow]not installed[/yellow]"
    return str(value).replace("[", r"\[")
