"""``gradood selftest``, ``bench --cuda`` and ``info``, as far as a machine without a GPU can go."""

import json
import os

import pytest
import torch
from typer.testing import CliRunner

from gradood.cli import app
from gradood.kernels.launch import INTERPRETING
from tests.processes import python

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")


def command(*arguments):
    """The command in a process of its own, where Triton compiles."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return python("-m", "gradood", *arguments, environment=environment)


@pytest.mark.slow
@pytest.mark.skipif(not INTERPRETING, reason="kernels run on the GPU here")
def test_selftest_passes_in_the_interpreter_and_says_what_it_is(tmp_path):
    out = tmp_path / "report.json"
    result = CliRunner().invoke(app, ["selftest", "--cuda", "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["measured on a GPU"] is False and report["failed"] == []
    assert len(report["checks"]) > 20
    assert "Nothing of this was measured on a GPU" in result.output


@no_gpu
def test_selftest_without_a_gpu_says_what_to_do():
    done = command("selftest", "--cuda")
    assert done.returncode == 2
    assert "no GPU that Triton supports" in done.stderr


@no_gpu
def test_bench_without_a_gpu_says_what_to_do(tmp_path):
    done = command("bench", "--cuda", "--out", tmp_path)
    assert done.returncode == 2 and "no GPU that Triton supports" in done.stderr


def test_info_says_that_no_figure_was_measured():
    result = CliRunner().invoke(app, ["info", "--json"])
    assert (
        "no figure was measured on a GPU"
        in json.loads(result.output)["backends"]["triton"]["figures"]
    )


@no_gpu
@pytest.mark.parametrize(
    ("preparation", "words"),
    [
        ("torch.version.cuda = None", "PyTorch without CUDA"),
        ("def init(): raise RuntimeError('Found no NVIDIA driver on your system')\n"
         "torch.version.cuda, torch.cuda.init = '13.0', init", "no driver"),
        ("def init(): raise RuntimeError('No CUDA GPUs are available')\n"
         "torch.version.cuda, torch.cuda.init = '13.0', init", "no GPU"),
        ("import triton; triton.__version__ = '3.1.0'", "unsupported version"),
        ("import sys; sys.modules['triton.language'] = None", "Triton does not load"),
    ],
)  # fmt: skip
def test_info_tells_apart_what_is_missing(preparation, words):
    code = f"import torch\n{preparation}\nfrom gradood.cli import app\napp(['info', '--json'])"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = python("-c", code, environment=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backends"]["triton"]["problem"] == words
