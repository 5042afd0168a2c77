"""Peak memory, measured in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradood.gradients import room

SCRIPT = """
import sys, threading, time
import torch, torchvision, gradood
from torch.nn.functional import binary_cross_entropy_with_logits

torch.set_num_threads(1)
model = torchvision.models.resnet18(num_classes=10).eval()
model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
model.maxpool = torch.nn.Identity()
x = torch.randn(64, 3, 32, 32)

def ordinary(x):
    logits = model(x)
    binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="sum").backward()
    model.zero_grad(set_to_none=True)

run = ordinary if sys.argv[1] == "ordinary" else lambda x: gradood.gradient_norms(model, x)

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096

run(x[:2])  # load every library, make every plan
peak, done, before = 0, False, resident()

def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
run(x)
done = True
watcher.join()
print(peak - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_that_of_an_ordinary_backward():
    pytest.importorskip("torchvision")

    def peak(which):
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, which], capture_output=True, text=True, check=True
        )
        return int(result.stdout)

    ours, ordinary = peak("ours"), peak("ordinary")
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
    wanted = min(room.MEMORY_BOUND, available // 4)
    assert room.memory_bound(torch.zeros(1)) == pytest.approx(wanted, rel=0.2)
