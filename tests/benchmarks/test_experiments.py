"""The experiments on the pictures in the package, as their command runs them."""

import csv
from pathlib import Path

import pytest

from benchmarks.experiments.page import architectures
from benchmarks.experiments.results import FAST
from benchmarks.experiments.rows import Row
from benchmarks.experiments.targets import targets
from tests.commands import run_module

DETECTORS = ('GradientDetector "fast"', 'GradientDetector "adversarial"', "GradientKNN", "Energy")


def run(folder: Path) -> list[dict[str, str]]:
    folder.mkdir()
    places = ["--cache", str(folder / "cache"), "--output", str(folder)]
    run_module("benchmarks.experiments", "--small", *places)
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


def test_targets_say_what_is_met() -> None:
    near = [
        Row("near", f"resnet8-near-{seed}", seed, FAST, "Bag", auroc, 50.0, 50.0, 10, 10)
        for seed, auroc in enumerate((90.9, 92.0, 94.0))
    ]
    last = targets(near).splitlines()[-1]
    assert last.split(" | ")[1:] == ["≥ 91", "≥ 93", "92.3 ± 1.6", "yes", "no", "3 |"]
    worse = [row._replace(auroc=row.auroc - 1.34) for row in near]  # 90.96 is 91.0 in print
    assert targets(worse).splitlines()[-1].split(" | ")[3:5] == ["91.0 ± 1.6", "no"]
    fpr95 = [Row("sets", "resnet8-0", 0, FAST, "Bag", 99.0, 50.0, 6.0, 10, 10)]
    assert any(
        " | ≤ 6.5 | ≤ 3.5 | 6.0 | yes | no | " in line for line in targets(fpr95).splitlines()
    )


def test_seeds_of_another_architecture_are_averaged() -> None:
    rows = [
        Row(part, f"{kind}-{seed}", seed, FAST, "Bag", 90.0 + seed, 50.0, 8.0 - seed, 10, 10)
        for kind, seeds in (("resnet8", 1), ("resnet20", 3), ("vit", 1))
        for part in ("sets", "attacks")
        for seed in range(seeds)
    ]
    text = "\n".join(architectures(rows))
    assert "resnet20 (3), vit (1): " in text
    cells = "91.0 ± 1.0 / 7.0 ± 1.0 | 91.0 ± 1.0 | 90.0 / 8.0 | 90.0 |"
    assert f"| {FAST} | {cells}" in text
    assert architectures([row for row in rows if row.classifier == "resnet8-0"]) == []
