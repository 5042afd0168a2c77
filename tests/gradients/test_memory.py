"""Peak memory, measured in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradood.gradients import memory_bound

SCRIPT = """
import torch, torchvision, gradood
from benchmarks.measuring.memory import peak_bytes
from torch.nn.functional import binary_cross_entropy_with_logits

torch.set_num_threads(1)
model = torchvision.models.resnet18(num_classes=10).eval()
model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
model.maxpool = torch.nn.Identity()
x = torch.randn(24, 3, 32, 32)

def ordinary(x):
    logits = model(x)
    binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="sum").backward()
    model.zero_grad(set_to_none=True)

for run in (lambda x: gradood.gradient_norms(model, x), ordinary):
    run(x[:2])  # load every library, make every plan
    print(peak_bytes(lambda: run(x)))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_that_of_an_ordinary_backward():
    pytest.importorskip("torchvision")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    ours, ordinary = map(int, done.stdout.split())
    assert ordinary > 100e6  # the measurement sees the activations
    assert ours <= 1.3 * ordinary


def test_a_full_page_cache_does_not_shrink_a_pass(monkeypatch):
    """After much reading of files hardly a page is free, and nearly all can be had."""
    memory = Path("/proc/meminfo")
    if not memory.exists():
        pytest.skip("asks Linux how much memory can be had")
    (line,) = (line for line in memory.read_text().splitlines() if line.startswith("MemAvailable"))
    available = int(line.split()[1]) << 10
    honest = os.sysconf
    monkeypatch.setattr(
        os, "sysconf", lambda name: 1 if name == "SC_AVPHYS_PAGES" else honest(name)
    )
    wanted = min(memory_bound.MEMORY_BOUND, available // 4)
    assert memory_bound.memory_bound(torch.zeros(1)) == pytest.approx(wanted, rel=0.2)
