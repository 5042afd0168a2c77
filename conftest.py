"""Whole folders of tests run in one process a core; files, single tests and benchmarks in one."""

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).with_name("tests")
#: A process takes up to 1 GB.
MOST = 8


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For ``-n auto``."""
    chosen = [Path(argument).resolve() for argument in config.args]
    if not all(path.is_dir() and (path == TESTS or TESTS in path.parents) for path in chosen):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if cores in (None, 1) else min(cores, MOST)
