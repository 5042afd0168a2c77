"""``bench --cuda`` as far as a CPU goes: what is measured, beside what; nothing is lost."""

import json

import pytest
import torch

from gradood.benchmarking import registry
from gradood.benchmarking.gpu import bench
from gradood.benchmarking.methods import Method
from gradood.benchmarking.workloads import Workload

TINY = Workload("mlp", batch=5, size=4, width=6, depth=2)


def failing(model, autocast):
    raise RuntimeError("no memory\nand more")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bench, "SECONDS", 0.0)


def measured(tmp_path, found, case=None):
    report = bench.Report(tmp_path / "deep" / "cuda.json")
    seen = []

    def say(text):
        seen.append((text, json.loads(report.path.read_text())))

    def here(case, names, device):
        for name in names:
            yield bench.row_of(case, name, found[name], device)

    todo = [case or bench.Case(TINY, torch.float32)]
    rows = list(bench.measure(todo, list(found), report, say, here, "cpu"))
    return rows, seen, json.loads(report.path.read_text())


def test_models_fill_a_gpu_in_every_type_and_layout():
    names = {case.name for case in bench.cases()}
    assert names == {
        *(f"resnet50, batch 256, {kind}{last}"
          for kind in ("bfloat16", "float32") for last in ("", ", channels last")),
        *(f"vit_b_16, batch 128, {kind}" for kind in ("bfloat16", "float32")),
    }  # fmt: skip
    assert all(case.workload.size == 224 for case in bench.cases())


def test_the_norms_stand_beside_passes_and_other_packages():
    assert list(bench.ways()) == [
        "forward", "activation-only", "forward+backward", bench.GRADOOD, bench.GRAPH,
        "gradood torch", "vmap chunks of 16", "BackPACK", "Opacus ghost",
    ]  # fmt: skip


def test_rows_are_in_the_report_as_soon_as_they_are_known(tmp_path, quick):
    names = (registry.FORWARD, registry.ACTIVATION_ONLY, registry.FORWARD_BACKWARD, registry.CPP)
    found = {name: registry.METHODS[name] for name in names}
    found["breaks"] = Method(failing)
    (rows,), seen, content = measured(tmp_path, found)
    assert [len(report["rows"]) for _, report in seen] == [0, 1, 2, 3, 4, 5]
    assert not any(report["finished"] for _, report in seen) and content["finished"]
    assert content["measured on a GPU"] is torch.cuda.is_available()
    assert content["versions"]["torch"] == torch.__version__
    by_name = {row["method"]: row for row in content["rows"]}
    for name in names:
        row = by_name[name]
        assert row["calls"] == bench.LEAST and 0 < row["p20_ms"] <= row["median_ms"]
        expected = row["median_ms"] / by_name[registry.FORWARD_BACKWARD]["median_ms"]
        assert row["ratio_forward_backward"] == pytest.approx(expected)
    assert by_name["breaks"]["note"] == "RuntimeError: no memory"
    assert by_name["breaks"]["median_ms"] is None
    assert len(rows) == 5


def test_calls_are_repeated_for_a_while(monkeypatch):
    monkeypatch.setattr(bench, "SECONDS", 0.2)
    called = []
    times, peak = bench.timed(lambda: called.append(0), "cpu")
    assert len(times) == bench.MOST and len(called) == bench.MOST + 1 and peak is None


@pytest.mark.parametrize("last", [True, False])
def test_images_lie_as_the_case_says(last):
    workload = Workload("resnet18", batch=3, size=16, width=8, depth=1)
    model, x = bench.Case(workload, torch.bfloat16, last).build("cpu")
    assert x.shape == (3, 3, 16, 16) and x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last) is last
    weights = [p for p in model.parameters() if p.dim() == 4 and p.shape[2] > 1]
    assert weights and all(
        w.is_contiguous(memory_format=torch.channels_last) is last for w in weights
    )


def test_the_share_of_the_roofline_is_of_what_norms_add():
    rows = [bench.Row("m", 1, "float32", False, name, median_ms=ms)
            for name, ms in ((registry.FORWARD_BACKWARD, 4.0), (registry.ACTIVATION_ONLY, 3.0),
                             (bench.GRADOOD, 5.0))]  # fmt: skip
    ours = bench._related(rows, 1.0)[-1]
    assert ours.least_ms == 1 and ours.share_of_roofline == 0.5
    assert ours.ratio_forward_backward == 1.25


def test_a_case_is_measured_in_a_process_that_failures_do_not_reach(monkeypatch):
    """A method that there is not ends it, as one that breaks the GPU does."""
    monkeypatch.delenv("GRADOOD_BACKEND", raising=False)
    case = bench.Case(TINY, torch.float32)
    names = ["no such method", registry.FORWARD, bench.GRAPH]
    rows = {row.method: row for row in bench.apart(case, names, "cpu")}
    assert list(rows) == names
    assert rows[registry.FORWARD].calls >= bench.LEAST and rows[registry.FORWARD].median_ms > 0
    assert "no such method" in rows["no such method"].note
    assert "CUDA device" in rows[bench.GRAPH].note and rows[bench.GRAPH].median_ms is None


def test_what_the_time_does_not_suffice_for_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "DEADLINE", -1.0)
    (rows,), _, content = measured(tmp_path, {registry.FORWARD: registry.METHODS["forward"]})
    assert "not measured" in rows[0].note and content["finished"]


def test_a_slow_method_is_called_less_often(monkeypatch):
    monkeypatch.setattr(bench, "SLOW", 0.0)
    times, _ = bench.timed(lambda: None, "cpu")
    assert len(times) == 1
