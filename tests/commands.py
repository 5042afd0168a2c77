"""The command line, and modules of ``benchmarks`` as commands, as their pages say."""

import json
import os
import subprocess
import sys

from typer.testing import CliRunner

from gradood.cli import app
from tests.documentation import ROOT


def run(*arguments, **options):
    """``gradood …`` in this process; how it ended and what it said. Options are typer's."""
    return CliRunner().invoke(app, list(map(str, arguments)), **options)


def rows(path):
    """The rows of a score file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(result):
    """What a command with --json said."""
    return [json.loads(line) for line in result.stdout.splitlines()]


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
