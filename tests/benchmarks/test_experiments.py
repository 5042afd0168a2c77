"""The experiments on the pictures in the package, as their command runs them."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DETECTORS = ('GradientDetector "fast"', 'GradientDetector "best"', "GradientKNN", "Energy")


def run(folder: Path) -> list[dict[str, str]]:
    command = [sys.executable, "-m", "benchmarks.experiments", "--small"]
    places = ["--cache", str(folder / "cache"), "--output", str(folder)]
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        command + places, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with (folder / "experiments.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_everything_runs_and_repeats_every_digit(tmp_path: Path) -> None:
    first, again = (run(tmp_path / name) for name in ("first", "again"))
    assert first == again
    scored = {(row["part"], row["detector"]) for row in first}
    for detector in DETECTORS:
        assert {("sets", detector), ("attacks", detector)} <= scored
    assert ("supervised", "all-hot, trained on noise only") in scored
    assert "## Targets" in (tmp_path / "first/experiments.md").read_text(encoding="utf-8")
