import csv
from pathlib import Path

import pytest
import torch

from benchmarks.experiments.__main__ import main
from benchmarks.experiments.protocols import UNSUPERVISED
from benchmarks.experiments.rows import Row


def run(folder: Path) -> list[dict[str, str]]:
    threads = torch.get_num_threads()
    main(seeds=1, small=True, cache=folder / "cache", output=folder)
    torch.set_num_threads(threads)
    with (folder / "experiments.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("default")
def test_everything_runs_and_repeats_every_digit(tmp_path: Path) -> None:
    first, again = (run(tmp_path / name) for name in ("first", "again"))
    assert first == again
    assert set(first[0]) == set(Row._fields)
    scored = {(row["part"], row["detector"]) for row in first}
    for detector in UNSUPERVISED:
        assert {("sets", detector), ("attacks", detector)} <= scored
    assert ("supervised", "all-hot, trained on noise only") in scored
    assert ("supervised attacks", "all-hot + CE-uniform, left out") in scored
    assert len({row["set"] for row in first if row["part"] == "sets"}) == 10
    page = (tmp_path / "first/experiments.md").read_text()
    assert "## Targets" in page and "not measured" in page
    assert all((tmp_path / f"first/experiments_{f}.png").exists() for f in ("roc", "layers"))
