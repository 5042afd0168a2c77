"""The measuring harness: a small run from end to end, its verdicts, its arithmetic."""

import csv
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import scaling
from benchmarks.measuring import worker
from benchmarks.measuring.__main__ import app
from benchmarks.measuring.check import compare, expected
from benchmarks.measuring.job import Job, Outcome, environment, run, run_together
from benchmarks.measuring.memory import peak_bytes
from benchmarks.measuring.others import include
from benchmarks.measuring.records import append
from benchmarks.measuring.study import rows
from gradood.benchmarking.registry import METHODS, method
from gradood.benchmarking.timing import paired_ratio, percentile, take_turns
from gradood.benchmarking.workloads import BUILDERS, Workload
from gradood.errors import InputError

TINY = {
    "mlp": Workload("mlp", batch=3, size=4, width=5, depth=2),
    "resnet20": Workload("resnet20", batch=3, size=8, width=4, depth=1),
    "vit": Workload("vit", batch=3, size=8, width=8, depth=1),
    "depthwise": Workload("depthwise", batch=3, size=8, width=4, depth=1),
}
include("benchmarks.peers")
NORMS = [name for name, one in METHODS.items() if one.computes != "nothing"]


def bench(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "160"})


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """``benchmarks.measuring``, where there already are results: (the run, the folder)."""
    out = tmp_path_factory.mktemp("bench") / "new folder"
    job = Job("time", TINY["mlp"], ("forward",))
    append(out / "norms.csv", rows(job, [Outcome("forward", [0.5, 0.25])], {}, 0.0))
    arguments = ["--model", "mlp", "--batch", 4, "--rounds", 2, "--threads", 1, "--out", out]
    return bench(*arguments, "--method", "gradood cpp"), out


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_command_prints_tables_and_appends_rows(results):
    run, out = results
    assert run.exit_code == 0, run.stderr
    assert "Time / (b), 1 thread, float32" in run.stdout
    assert re.search(r"gradood cpp +[\d.]+ +[\d.]+–[\d.]+ ", run.stdout)
    assert str(out / "norms.csv") in run.stdout
    names = [r["method"] for r in read(out / "norms.csv")]
    assert names == ["forward", "activation-only", "forward+backward", "gradood cpp"]
    assert len((out / "norms.csv").read_text().splitlines()) == 1 + len(names)


@pytest.mark.slow
def test_rows_say_what_was_measured_and_on_what(results):
    _, *found = read(results[1] / "norms.csv")
    for row in found:
        assert row["rounds"] == "2" and row["batch"] == "4" and row["threads"] == "1"
        assert row["torch"] == torch.__version__.split("+")[0]
        assert row["cpu"] and row["version"] and row["date"].endswith("+00:00")
        assert 0 < float(row["p20_s"]) <= float(row["median_s"]) <= float(row["p80_s"])
        assert float(row["ratio_forward_backward"]) > 0
    _, reference, ours = found
    assert (ours["checked"], ours["missing"], ours["wrong"]) == ("6", "0", "0")
    assert 0 < float(ours["error"]) < 1e-5
    assert float(reference["ratio_forward_backward"]) == 1.0 == float(reference["ratio_peak"])
    # Its gradients alone are as large as the model, 669 706 float32 numbers: 2.68 MB.
    assert 2.3 < float(reference["peak_mb"]) < 20
    assert 0 < float(ours["peak_mb"]) < float(reference["peak_mb"])


@pytest.mark.slow
def test_plot_is_drawn(results):
    drawing = (results[1] / "norms.svg").read_text()
    assert drawing.startswith("<?xml") and "gradood cpp" in drawing and "mlp, 4" in drawing


@pytest.mark.parametrize(
    "arguments",
    [("--model", "nonsense"), ("--method", "nonsense")],
)
def test_unknown_names_are_refused_with_what_there_is(arguments, tmp_path):
    run = bench(*arguments, "--out", tmp_path / "new")
    assert run.exit_code == 2 and run.stdout == ""
    assert "; use one of" in run.stderr.replace("\n", " ")


def test_a_model_without_a_series_is_refused_with_what_there_is():
    with pytest.raises(InputError, match="; use one of"):
        list(scaling.series("depthwise"))


@pytest.mark.slow
def test_methods_of_a_module_are_measured_in_the_process_that_measures():
    job = Job(
        "time", TINY["mlp"], ("loop", "BackPACK"), rounds=1, methods_from=("benchmarks.peers",)
    )
    assert [outcome.method for outcome in run(job)] == ["loop", "BackPACK"]


@pytest.mark.parametrize("module", ["benchmarks.nothing", "benchmarks"])
def test_a_module_without_methods_is_refused(module, tmp_path):
    run = bench("--methods-from", module, "--out", tmp_path / "new")
    assert run.exit_code == 2 and "give a module with METHODS" in run.stderr.replace("\n", " ")


def test_rows_are_not_appended_to_another_table(tmp_path):
    """Found out before anything is measured."""
    (tmp_path / "norms.csv").write_text("a,b\n1,2\n")
    run = bench("--out", tmp_path)
    assert run.exit_code == 2 and "other columns" in run.stderr.replace("\n", " ")
    assert (tmp_path / "norms.csv").read_text() == "a,b\n1,2\n"


def verdict(model, name):
    one = method(name)
    if not one.package == "gradood":
        pytest.importorskip({"backpack-for-pytorch": "backpack"}.get(one.package, "torch"))
    network, x = TINY[model].build()
    call = one.prepare(TINY[model].build()[0], False)
    return compare(call(x), expected(network, x, one.computes)), network


EXACT = [name for name in NORMS if name not in ("BackPACK", "Opacus ghost")]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("model", TINY)
def test_complete_methods_are_exact(model, name):
    if METHODS[name].package == "pytorch-ood":
        pytest.importorskip("pytorch_ood")
    found, _ = verdict(model, name)
    assert str(found) == "exact" and found.error < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["resnet20", "vit", "depthwise"])
def test_what_backpack_leaves_out_or_gets_wrong_is_found(model):
    pytest.importorskip("backpack")
    found, network = verdict(model, "BackPACK")
    layer_norms = {n for n, _ in network.named_parameters() if "norm" in n and model == "vit"}
    assert set(found.missing) == layer_norms
    grouped = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if getattr(module, "groups", 1) > 1
    }
    assert set(found.wrong) == grouped
    assert found.error < 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["mlp", "resnet20", "vit", "depthwise"])
def test_what_opacus_leaves_out_is_found(model):
    pytest.importorskip("opacus")
    found, network = verdict(model, "Opacus ghost")
    batch_norms = {
        f"{name}.{kind}"
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    assert set(found.missing) == batch_norms
    assert not found.wrong and found.error < 1e-2


def test_a_wrong_or_unfinished_column_is_not_right():
    right = {name: torch.tensor([1.0, 2.0, 4.0]).double() for name in "abcd"}
    found = {
        "a": torch.tensor([1.1, 2.0, 4.1, 9.0]),
        "b": torch.tensor([1.0, float("nan"), 4.0, 9.0]),
        "c": torch.tensor([1.0, 2.0, 4.1, 9.0]),  # one sample only: a ReLU on its kink
    }
    judged = compare(found, right)
    assert judged.wrong == ("a", "b") and judged.missing == ("d",)
    assert str(judged) == "1 of 4 missing, 2 of 4 wrong" and judged.error == 0


def test_what_rounding_alone_does_is_not_wrong():
    right = {name: torch.tensor([1.0, 2.0]).double() for name in "ab"}
    found = {"a": torch.tensor([1.02, 2.02]), "b": torch.tensor([1.04, 2.04])}
    rounded = {"a": torch.tensor([1.008, 2.008]), "b": torch.tensor([1.00004, 2.00004])}
    assert compare(found, right, rounded).wrong == ("b",)
    assert compare(found, right).wrong == ("a", "b")
    useless = {name: torch.tensor([5.0, 9.0]) for name in "ab"}
    assert compare({"a": 2 * right["a"]}, right, useless).wrong == ("a",)


@pytest.mark.slow
def test_a_peer_that_is_not_installed_is_a_row(monkeypatch):
    module = "opacus.grad_sample.grad_sample_module_fast_gradient_clipping"
    monkeypatch.setitem(sys.modules, module, None)  # cannot be imported
    monkeypatch.setattr("benchmarks.measuring.worker.installed", lambda package: "")
    job = Job("time", TINY["mlp"], ("forward+backward", "Opacus ghost"), rounds=1)
    table = rows(job, worker.measure(job), {}, 0.0)
    assert [r.faults for r in table] == ["", "not installed: pip install opacus"]
    assert table[0].median_s > 0 and table[1].median_s is None and table[1].rounds == 0


@pytest.mark.filterwarnings("ignore")
def test_a_peer_that_fails_is_a_row_with_its_reason(monkeypatch):
    """Opacus refuses a layer that is called twice."""
    pytest.importorskip("opacus", exc_type=ImportError)
    monkeypatch.setitem(BUILDERS, "mlp", lambda w: torch.nn.Sequential(torch.nn.Flatten(), Twice()))
    job = Job("time", TINY["mlp"], ("forward+backward", "Opacus ghost"), rounds=1)
    table = rows(job, worker.measure(job), {}, 0.0)
    assert "NotImplementedError: Parameter tying" in table[1].faults


class Twice(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 16)

    def forward(self, x):
        return self.layer(self.layer(x))


def test_a_dead_process_is_trouble_and_not_an_end():
    (outcome,) = run(Job("time", replace(TINY["mlp"], batch=-1), ("forward",)))
    assert "status 1" in outcome.trouble and "-1" in outcome.trouble
    assert outcome.seconds == [] and outcome.peak is None


@pytest.mark.slow
def test_jobs_together_are_answered_in_order():
    first = Job("time", TINY["mlp"], ("forward",), rounds=2)
    second = Job("time", TINY["vit"], ("activation-only", "forward"), rounds=1)
    answers = run_together([first, second])
    assert [[(o.method, len(o.seconds)) for o in answer] for answer in answers] == [
        [("forward", 2)],
        [("activation-only", 1), ("forward", 1)],
    ]


def test_threads_and_allocator_are_fixed():
    time = environment(Job("time", TINY["mlp"], ("forward",), threads=2), {"HOME": "/"})
    assert time["OMP_NUM_THREADS"] == "2" and time["OMP_WAIT_POLICY"] == "passive"
    assert time["MALLOC_MMAP_MAX_"] == "0" and time["HOME"] == "/"
    assert time["MALLOC_TRIM_THRESHOLD_"] == "17179869184"
    memory = environment(Job("memory", TINY["mlp"], ("forward",)), {})
    assert "MALLOC_MMAP_MAX_" not in memory and memory["MALLOC_MMAP_THRESHOLD_"] == "65536"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_counts_what_was_freed_again():
    def work():
        torch.ones(24_000_000).sum()  # 96 MB
        torch.ones(2_000_000).sum()

    work()
    assert 95e6 < peak_bytes(work) < 110e6
    assert peak_bytes(lambda: None) < 2e6


def test_methods_take_turns():
    turns = []
    calls = {name: lambda name=name: turns.append(name) for name in "abc"}
    seconds = take_turns(calls, {"a": 3, "b": 2, "c": 3}, minimum=0.0)
    assert "".join(turns) == "abc" + "abc" + "abc" + "ac"  # the first is to count repeats
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 2, "c": 3}


def test_ratio_is_of_the_same_round():
    assert paired_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 4.0]) == 2.0
    assert paired_ratio([3.0], [1.0, 50.0]) == 3.0


def test_percentiles():
    seconds = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(seconds, p) for p in (0.2, 0.5, 0.8, 1.0)] == [1.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_exponent_of_a_power_is_found(exponent):
    values = [3, 8, 16, 50]
    slope, residual = scaling.fit(values, [0.01 * v**exponent for v in values])
    assert slope == pytest.approx(exponent, abs=1e-9) and residual < 1e-9


def test_exponent_under_noise_and_its_residual():
    generator = np.random.default_rng(0)
    values = np.array([2.0**k for k in range(1, 9)])
    seconds = values**1.5 * np.exp(generator.normal(0, 0.05, 8))
    slope, residual = scaling.fit(values.tolist(), seconds.tolist())
    assert slope == pytest.approx(1.5, abs=0.05) and 0.02 < residual < 0.08


@pytest.mark.parametrize("values", [[], [4, 4], [0, 1]])
def test_exponent_of_too_little_is_refused(values):
    with pytest.raises(InputError, match="two different values"):
        scaling.fit(values, [1.0] * len(values))


def test_exponents_of_rows():
    table = []
    for batch in (2, 4, 8):
        job = Job("time", replace(TINY["mlp"], batch=batch), ("forward+backward", "gradood cpp"))
        times = {"forward+backward": [batch * 1e-3] * 3, "gradood cpp": [batch**2 * 1e-3] * 3}
        table += rows(job, [Outcome(n, times[n]) for n in job.methods], {}, 0.0)
    found = {e.method: e for e in scaling.exponents(table, "batch")}
    assert found["forward+backward"].exponent == pytest.approx(1)
    assert found["gradood cpp"].exponent == pytest.approx(2)
    assert found["gradood cpp"].values == "2 4 8"


@pytest.mark.parametrize("model", scaling.SERIES)
def test_series_change_one_quantity(model):
    for axis, workloads in scaling.series(model):
        values = [getattr(w, axis) for w in workloads]
        assert values == sorted(set(values)) and len(values) >= 4
        assert len({replace(w, **{axis: 0}) for w in workloads}) == 1
