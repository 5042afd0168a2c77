"""What commands say: on the terminal, and in reports what they were made with."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gradood.errors import InputError

if TYPE_CHECKING:
    from gradood.cli.options import ModelOptions
    from gradood.evaluation.reports.page import Page


def check_folder(folder: Path | None, option: str = "--report") -> None:
    """Refuse a folder that cannot be written to before anything is computed."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {option} {folder}: {error.strerror}") from error


def say(text: str, *, err: bool = False, style: str | None = None) -> None:
    """Print a line as it is, however long it is."""
    console = Console(stderr=err)
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def write(page: Page, folder: Path, quiet: bool = False) -> None:
    """Write a page, and say where it is unless ``quiet``."""
    path = page.write(folder)
    if not quiet:
        say(f"Report: {path.resolve()}")


def made_with(
    inputs: Mapping[str, Sequence[str | Path]],
    detector: Mapping[str, Any],
    models: ModelOptions | None,
) -> dict[str, Any]:
    """The facts at the end of a page: inputs, model, detector, machine, versions and time."""
    from gradood.benchmarking.machine import processor
    from gradood.progress import cores

    found: dict[str, Any] = {name: ", ".join(map(str, paths)) for name, paths in inputs.items()}
    if models is not None:
        from gradood.scoring.models import find_device

        weights = f", weights {models.weights}" if models.weights else ""
        given = f"; preprocessing {models.preprocess}" if models.preprocess else ""
        model = models.model or "the embedded Fashion-MNIST classifier"
        found["Model"] = f"{model}{weights}{given}"
        found["Computed on"] = f"{find_device(models.device)} in {models.dtype.value}"
    return {
        **found,
        **detector,
        "Machine": f"{processor()[0]}, {cores()} cores usable",
        "Made with": versions(),
        "Made on": time.strftime("%d %B %Y, %H:%M UTC", time.gmtime()),
    }


def describe_detector(name: str | None) -> tuple[dict[str, Any], float | None]:
    """What is known of ``--detector`` without its model, and its threshold if it has one."""
    if name is None:
        return {}, None
    if not Path(name).is_file():
        return {"Detector": f"{name}, which needs no fit", "Threshold": "none"}, None
    from gradood.detectors.checkpoint import read_header

    header = read_header(name)
    threshold = header["threshold"]
    known = {"Detector": f"{header['class']} from {name}, made by gradood {header['version']}"}
    settings = json.dumps({k: v for k, v in header["settings"].items() if k != "parameters"})
    known["Its settings"] = settings
    known["Threshold"] = _threshold(threshold, header.get("calibration"))
    return known, threshold


def _threshold(threshold: float | None, calibration: Mapping[str, Any] | None) -> str:
    if threshold is None:
        return "none: not calibrated"
    if calibration is None:
        return f"{threshold:.6g}; the file does not say how it was chosen"
    return (
        f"{threshold:.6g}, for at most {calibration['fpr']:.3g} false alarms among inputs like "
        f"the {calibration['inputs']:,} normal ones that it was calibrated with"
    )


def versions() -> str:
    """One line."""
    from gradood.cli.info import versions

    return ", ".join(f"{name} {version}" for name, version in versions().items() if version)
