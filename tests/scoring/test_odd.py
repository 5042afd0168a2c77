"""A thousand odd files: each is scored, or named with its reason; none ends the run."""

import collections
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradood
from gradood.data.files import open_source
from gradood.detectors import Energy
from gradood.errors import InputError
from gradood.scoring.models import load_model
from gradood.scoring.stream import Stream
from tests.scoring.odd import Odd, all_paths


def scored_and_named(root, caplog):
    """Every row by its identifier, and what the log says was left out."""
    loaded = load_model(device="cpu")
    detector = Energy(loaded.model)
    stream = Stream(lambda x: (detector.score(x),), loaded, on_error="skip", workers=2)
    rows, stopped = [], []
    with caplog.at_level(logging.WARNING, "gradood"):
        for path in all_paths(root):
            try:
                for batch in stream.run(open_source([path])):
                    good = iter(batch.results[0].tolist() if batch.results else ())
                    rows += [
                        (path, name, error, None if error else next(good))
                        for name, error in zip(batch.ids, batch.errors, strict=True)
                    ]
            except InputError as error:
                stopped.append((path, str(error)))
    return rows, stopped, caplog.text


def check(root, caplog):
    rows, stopped, log = scored_and_named(root, caplog)
    assert not stopped
    for _, name, error, score in rows:
        assert name.isprintable() and (
            score is not None or (len(error) > 8 and error.isprintable())
        )
    named = collections.Counter(path for path, *_ in rows)
    pictures = [Path(f) / name for f, _, names in os.walk(root / "pictures") for name in names]
    endings = (".png", ".jpg", ".jfif", ".jpe", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm",
               ".pgm", ".apng")  # fmt: skip
    taken = [p for p in pictures if p.suffix in endings and not p.is_dir()]
    direct = [name for path, name, *_ in rows if path.is_dir() and "-linked/" not in name]
    assert len(taken) == len(direct)
    assert ".txt files" in log and ".heic files" in log
    for path in all_paths(root):
        assert named[path] or open_source([path]).count() == 0, path
    return len(rows), sum(score is not None for *_, score in rows)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it mends
def test_odd_files_are_scored_or_named(tmp_path, caplog):
    Odd(tmp_path, seed=1).write(80)
    rows, scored = check(tmp_path, caplog)
    assert rows > 80 and 15 < scored < rows


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [0])
def test_a_thousand_odd_files(tmp_path, caplog, seed):
    Odd(tmp_path, seed).write(1000)
    rows, scored = check(tmp_path, caplog)
    assert rows > 1000 and 200 < scored < rows


PEAK = """
import resource, sys
from gradood.cli import app
from gradood.scoring.models import load_model
load_model(device="cpu")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    app(sys.argv[1:])
except SystemExit as exit:
    print("status", exit.code)
print("MB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_command_takes_less_than_a_gigabyte(tmp_path):
    Odd(tmp_path / "odd", seed=2).write(1000)
    out = tmp_path / "s.jsonl"
    paths = [os.fsencode(path) for path in all_paths(tmp_path / "odd")]
    command = [sys.executable, "-c", PEAK, "score", *paths, "--out", str(out), "--on-error", "skip"]
    environment = {**os.environ, "PYTHONPATH": str(Path(gradood.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=1400)
    text = done.stdout.decode()
    assert "status 3" in text and b"Traceback" not in done.stderr, done.stderr[-2000:]
    assert int(text.split("MB")[1]) < 1024, text
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) > 1000 and any(row["score"] is not None for row in rows)
