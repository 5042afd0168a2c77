"""``gradood bench``: what a user without a checkout measures."""

import csv
import math
import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from gradood.benchmarking.bench import Job, environment, measure, run, with_references
from gradood.benchmarking.workloads import BUILDERS, LARGE, STANDARD, Workload, workload
from gradood.cli import app
from gradood.errors import GradoodError

TINY = Workload("mlp", batch=3, size=4, width=5, depth=2)
NAMES = ["forward", "activation-only", "forward+backward", "gradood cpp"]


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], env={"COLUMNS": "160"})


def test_command_prints_a_table_and_writes_what_was_measured_on_what(tmp_path):
    out = tmp_path / "new folder"
    options = ["--model", "mlp", "--batch", 4, "--rounds", 2, "--threads", 1, "--out", out]
    done = bench(*options, "--method", "forward", "--method", "gradood cpp")
    assert done.exit_code == 0, done.stderr
    assert "1 thread, float32" in done.stdout and "mlp, 4" in done.stdout
    assert re.search(r"gradood cpp +[\d.]+ \([\d.]+\)", done.stdout)
    assert str(out / "bench.csv") in done.stdout
    with (out / "bench.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == NAMES
    for row in rows:
        assert (row["model"], row["batch"], row["threads"], row["rounds"]) == ("mlp", "4", "1", "2")
        assert row["torch"] == torch.__version__.split("+")[0] and row["cpu"]
        assert 0 < float(row["p20_s"]) <= float(row["median_s"]) <= float(row["p80_s"])
    assert (
        float(rows[2]["ratio_forward_backward"]) == 1.0 == float(rows[1]["ratio_activation_only"])
    )


@pytest.mark.parametrize("arguments", [("--model", "nonsense"), ("--method", "nonsense")])
def test_unknown_names_are_refused_with_what_there_is(arguments, tmp_path):
    done = bench(*arguments, "--out", tmp_path / "new")
    assert done.exit_code == 2 and done.stdout == ""
    assert "; use one of" in done.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    "option", [("--methods-from", "benchmarks.peers"), ("--no-memory",), ("--autocast",)]
)
def test_options_that_moved_say_where(option):
    done = bench(*option)
    assert done.exit_code == 2 and "benchmarks.measuring" in done.stderr.replace("\n", " ")


def test_results_that_cannot_be_written_are_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    done = bench("--out", tmp_path / "file")
    assert done.exit_code == 2 and "cannot write results" in done.stderr.replace("\n", " ")


def test_a_method_that_fails_is_a_row_with_its_reason(monkeypatch):
    monkeypatch.setitem(BUILDERS, "mlp", lambda w: torch.nn.Sequential(torch.nn.Flatten(), Picky()))
    rows = measure(Job(TINY, ("forward+backward", "loop"), rounds=1))
    assert [row.note for row in rows] == ["", "", "ValueError: no sample alone"]
    assert rows[1].median_s > 0 and rows[2].median_s is None and rows[2].rounds == 0


class Picky(torch.nn.Linear):
    def __init__(self):
        super().__init__(16, 3)

    def forward(self, x):
        if len(x) == 1:
            raise ValueError("no sample alone")
        return super().forward(x)


def test_a_dead_process_is_an_error_with_its_last_words():
    with pytest.raises(GradoodError, match=r"mlp: measuring ended with 1: .*-1"):
        run(Job(replace(TINY, batch=-1), ("forward",)))


def test_threads_and_allocator_are_fixed():
    fixed = environment(2, {"HOME": "/"})
    assert fixed["OMP_NUM_THREADS"] == "2" and fixed["OMP_WAIT_POLICY"] == "passive"
    assert fixed["MALLOC_MMAP_MAX_"] == "0" and fixed["HOME"] == "/"
    assert fixed["MALLOC_TRIM_THRESHOLD_"] == "17179869184"


def test_references_are_measured_too():
    assert with_references(["gradood cpp", "forward"]) == tuple(NAMES)


@pytest.mark.parametrize(
    ("model", "parameters", "tensors"),
    [
        ("mlp", 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10, 6),
        ("resnet18", 11_173_962, 62),
        # 269 722 with parameter-free shortcuts, plus two projections and their batch norms.
        ("resnet20", 269_722 + 2_560 + 192, 65),
        ("vit", None, 78),
        ("depthwise", None, None),
    ],
)
def test_standard_models_have_the_published_sizes(model, parameters, tensors):
    network, x = workload(model).build()
    shapes = [p.shape for p in network.parameters()]
    assert parameters in (None, sum(map(math.prod, shapes)))
    assert tensors in (None, len(shapes))
    assert not network.training and x.shape == (workload(model).batch, *x.shape[1:])
    again, same = workload(model).build()
    assert torch.equal(x, same)
    assert all(map(torch.equal, network.parameters(), again.parameters()))


def test_every_model_has_a_workload():
    assert {*STANDARD, *LARGE} == set(BUILDERS) == {workload(m).model for m in BUILDERS}
