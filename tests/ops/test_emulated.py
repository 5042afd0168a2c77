"""The kernels' generic path on another processor, under an emulator."""

import shutil
import subprocess
import sys

import pytest

TOOLS = ("aarch64-linux-gnu-g++", "qemu-aarch64")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute on a machine that is idle
@pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason=f"needs {' and '.join(TOOLS)} (Debian packages)"
)
def test_kernels_for_aarch64_equal_the_reference():
    command = [sys.executable, "-m", "benchmarks.emulated"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong" in done.stdout
