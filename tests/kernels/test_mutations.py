"""Faults planted in the kernels are noticed; the committed score says that all are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradood.kernels.launch import INTERPRETING

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "mutate_triton.py"


def mutate(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_committed_score_is_full():
    text = (ROOT / "benchmarks" / "results" / "mutations_triton.md").read_text()
    planted = SCRIPT.read_text().count("Mutation(\n") + SCRIPT.read_text().count('Mutation("')
    assert f"{planted} of {planted} faults killed" in text and "survived" not in text


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not INTERPRETING, reason="kernels run on the GPU here")
def test_every_fault_is_noticed():
    done = mutate()
    assert done.returncode == 0, done.stdout + done.stderr
