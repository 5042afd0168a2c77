"""A hundred files that are damaged, hostile or odd: each is an error or a reported skip."""

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from gradood.data.files import open_source
from gradood.detectors import Energy
from gradood.errors import GradoodError
from gradood.scoring.models import load_model
from gradood.scoring.stream import Stream
from tests.processes import python
from tests.scoring.malformed import arrays, others, picture, pictures, shards, tables

KINDS = [pictures, arrays, tables, shards, others]


@pytest.fixture(scope="module")
def loaded():
    return load_model(device="cpu")


@pytest.fixture
def files(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, mark = tmp_path / "files", tmp_path / "executed"
    root.mkdir()
    return request.param(root, mark), mark


def said_of(path, loaded):
    """What is said of the inputs in a file, and how many scores there are."""
    detector = Energy(loaded.model)
    stream = Stream(lambda x: (detector.score(x),), loaded, on_error="skip", workers=1)
    try:
        batches = list(stream.run(open_source([path])))
    except GradoodError as error:
        return [str(error)], 0
    scores = torch.cat([s for batch in batches for s in batch.results] or [torch.empty(0)])
    return [error for batch in batches for error in batch.errors if error], len(scores)


@pytest.mark.parametrize("files", KINDS, indirect=True, ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_every_file_is_an_error_or_a_reported_skip(files, loaded):
    paths, mark = files
    for path in paths:
        errors, scores = said_of(path, loaded)
        assert scores == 0, path
        # An empty array has no rows to complain of.
        assert errors or path.name == "none.npy" or path.name == "none.parquet", path
        for error in errors:
            assert len(error) > 8 and error.isprintable(), (path, error)
    assert not mark.exists()
    assert not os.path.exists("/tmp/outside.png")


def test_there_are_more_than_a_hundred(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = 0
    for kind in KINDS:
        (tmp_path / kind.__name__).mkdir()
        count += len(kind(tmp_path / kind.__name__, tmp_path / "executed"))
    assert count >= 100


@contextmanager
def unprivileged():
    """As a user who may not read everything, where the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_what_may_not_be_read_is_said(loaded):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are their owner's alone
        folder = Path(name)
        folder.chmod(0o755)
        Image.fromarray(picture()).save(folder / "x.png")
        assert said_of(folder, loaded) == ([], 1)
        (folder / "x.png").chmod(0)
        (folder / "folder").mkdir(mode=0)
        with unprivileged():
            errors, scores = said_of(folder, loaded)
    assert scores == 0
    assert len(errors) == 2 and all("Permission denied" in error for error in errors)


@pytest.mark.slow
def test_the_command_survives_them_all(tmp_path, monkeypatch):
    """One run over all of them and a good picture: it ends, and says what it left out."""
    monkeypatch.chdir(tmp_path)
    paths = []
    for kind in KINDS:
        (tmp_path / kind.__name__).mkdir()
        paths += kind(tmp_path / kind.__name__, tmp_path / "executed")
    good = tmp_path / "good.png"
    Image.fromarray(picture()).save(good)
    # Links that lead nowhere are wrong usage where they are named, and wrong inputs in a folder.
    named = [os.fsencode(path) for path in paths if path.parent.name != "pictures"]
    command = ["-m", "gradood", "score", "pictures", *map(os.fsdecode, named), good, "--json"]
    options = ["--out", "scores.jsonl", "--detector", "energy", "--on-error", "skip"]
    done = python(*command, *options)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    found = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found if row["score"] is not None] == [str(good)]
    assert len([row for row in found if row["error"]]) >= 95
    logged = [json.loads(line) for line in done.stdout.splitlines()]
    assert logged[-1]["event"] == "done" and logged[-1]["skipped"] == len(found) - 1
    assert not (tmp_path / "executed").exists()
