"""The self-test survives what it is there to find, and its checks notice what is wrong."""

import json
import sys

import pytest
import torch

from gradood.benchmarking.gpu import isolation, selftest, whole_checks
from gradood.benchmarking.operators import Check
from gradood.kernels.launch import INTERPRETING
from gradood.ops import triton_backend

SCRIPT = """
import os, sys
from gradood.benchmarking.gpu.isolation import run_items

def good(): yield {"name": "fine", "passed": True, "detail": ""}
def raises():
    yield {"name": "first half", "passed": True, "detail": ""}
    raise ValueError("wrong number") from TypeError("the cause")
def dies():
    print("not JSON", flush=True)
    print("assertion failed", file=sys.stderr, flush=True)
    os._exit(134)
items = {"good": good, "raises": raises, "dies": dies, "after": good}
sys.exit(run_items(sys.argv[1:], items, lambda line: print(line, flush=True)))
"""


def run(names, tmp_path, script):
    path = tmp_path / "items.py"
    path.write_text(script)
    return map(selftest.as_check, isolation.isolated(names, [sys.executable, str(path)]))


def test_every_item_is_run_whatever_becomes_of_the_others(tmp_path):
    names = ["good", "raises", "dies", "after"]
    found = list(run(names, tmp_path, SCRIPT))
    assert [(c.name, c.passed) for c in found] == [
        ("fine", True), ("first half", True), ("raises", False), ("dies", False), ("fine", True),
    ]  # fmt: skip
    assert "wrong number" in found[2].detail and "the cause" in found[2].detail
    assert "134" in found[3].detail and "assertion failed" in found[3].detail


def test_an_item_that_never_ends_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "PATIENCE", 4)
    script = SCRIPT.replace("os._exit(134)", "import time; time.sleep(200)")
    found = list(run(["dies", "after"], tmp_path, script))
    assert [(c.name, c.passed) for c in found] == [("dies", False), ("fine", True)]


def test_a_process_that_cannot_even_begin_is_told(tmp_path):
    found = list(run(["a", "b"], tmp_path, "import sys; sys.exit('broken')"))
    assert [(c.name, c.passed) for c in found] == [("a", False), ("b", False)]
    assert "broken" in found[0].detail


def test_the_report_is_there_before_the_end(tmp_path):
    out = tmp_path / "report.json"
    selftest.report([Check("a", True, ""), Check("b", False, "no")], out, finished=False)
    content = json.loads(out.read_text())
    assert content["finished"] is False and content["failed"] == ["b"]
    assert content["measured on a GPU"] is torch.cuda.is_available()
    assert {"torch", "triton", "cudnn"} <= set(content["versions"])
    assert list(tmp_path.iterdir()) == [out]


def test_a_gpu_has_an_item_for_everything_that_was_asked_for():
    names = set(selftest.items("cuda"))
    assert {"graph", "side stream", "second device", "autocast", "TF32", "votes"} <= names
    assert {f"model: {name}" for name in ("ResNet-18", "ViT-B/16", "MobileNetV3", "LSTM")} <= names
    assert sum(name.startswith("kernel: ") for name in names) > 60


AROUND = (whole_checks.stream_check, whole_checks.autocast_check, whole_checks.tf32_check)


@pytest.mark.parametrize("check", [*AROUND, whole_checks.second_device_check])
def test_checks_around_a_pass_run_and_pass(check, monkeypatch):
    monkeypatch.delenv("GRADOOD_BACKEND", raising=False)
    found = list(check("cpu"))
    assert found and all(c.passed for c in found), found


def test_a_whole_model_is_compared_and_a_wrong_norm_is_noticed(monkeypatch):
    monkeypatch.delenv("GRADOOD_BACKEND", raising=False)
    (right,) = whole_checks.model_check("LSTM", "cpu")
    assert right.passed
    norms, calls = whole_checks._norms, []

    def second_is_wrong(*args, **options):
        calls.append(norms(*args, **options))
        return calls[-1] * (1 if len(calls) < 2 else 1.01)

    monkeypatch.setattr(whole_checks, "_norms", second_is_wrong)
    (wrong,) = whole_checks.model_check("LSTM", "cpu")
    assert not wrong.passed and "1.0e-02" in wrong.detail


@pytest.mark.skipif(not INTERPRETING, reason="the self-test itself runs it on a GPU")
def test_noise_in_every_option():
    found = list(whole_checks.noise_options_check(triton_backend, "cpu"))
    assert len(found) == 36 and all(c.passed for c in found)
