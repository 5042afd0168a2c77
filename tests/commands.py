"""Modules of ``benchmarks`` run as commands, as their pages say."""

import os
import subprocess
import sys

from tests.documentation import ROOT


def run_module(*arguments):
    """``python -m …`` from the repository, on one thread and without a display; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
