"""Runs that are interrupted, and go on with other inputs than they began with."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gradood.data.files import IterableSource, open_source
from gradood.scoring.resuming import Remaining
from tests.cli.test_interrupted import interrupted
from tests.commands import run
from tests.pictures import pixels, write_pictures


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path / "in", "mnist", 40)
    return tmp_path / "in"


def ids(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def present(folder):
    return sorted(p.name for p in folder.iterdir())


def add(folder, *names):
    for name in names:
        shutil.copy(next(folder.glob("*.png")), folder / name)


def added_before(folder):
    add(folder, "0.png", "00003b.png")


def added_after(folder):
    add(folder, "z.png", "00039b.png")


def removed_before(folder):
    (folder / "00002.png").unlink()


def removed_after(folder):
    (folder / "00030.png").unlink()


def renamed(folder):
    (folder / "00001.png").rename(folder / "z.png")


def everything(folder):
    for change in (added_before, added_after, removed_before, removed_after, renamed):
        change(folder)


CHANGES = [added_before, added_after, removed_before, removed_after, renamed, everything]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("world", [1, 2])
def test_nothing_is_repeated_or_lost(folder, tmp_path, change, world, monkeypatch):
    before = set(present(folder))
    found = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        interrupted(("score", folder, "--out", tmp_path / "s.jsonl"), batches=2)
    change(folder)
    for _ in range(2):  # interrupted once more, in the middle of what was left
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            out = tmp_path / (f"s-{rank:05}-of-{world:05}.jsonl" if world > 1 else "s.jsonl")
            command = ("score", folder, "--out", tmp_path / "s.jsonl", "--resume")
            if _ == 0 and world == 1:
                interrupted(command, batches=1)
                continue
            result = run(*command, "--batch-size", 8)
            assert result.exit_code == 0, result.output
            found += ids(out) if _ else []
    assert len(found) == len(set(found))
    assert set(present(folder)) <= set(found) <= before | set(present(folder))


def test_a_finished_file_that_lacks_inputs_is_not_called_complete(folder, tmp_path):
    command = ("score", folder, "--out", tmp_path / "s.jsonl", "--resume")
    assert run(*command).exit_code == 0
    (folder / "00001.png").unlink()
    assert run(*command).exit_code == 0  # it has more than there is
    add(folder, "new.png")
    result = run(*command)
    assert result.exit_code == 2 and "no row for new.png" in " ".join(result.output.split())
    assert len(ids(tmp_path / "s.jsonl")) == 40


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_finished_file_says_again_what_was_skipped(folder, tmp_path, ending):
    (folder / "bad.png").write_bytes(b"no picture")
    out = tmp_path / f"s.{ending}"
    command = ("score", folder, "--out", out, "--on-error", "skip", "--resume")
    first = run(*command)
    content = out.read_bytes()
    again = run(*command)
    assert first.exit_code == again.exit_code == 3
    assert "complete: 40 inputs scored, 1 skipped" in " ".join(again.output.split())
    assert out.read_bytes() == content
    (folder / "bad.png").unlink()
    assert run(*command).exit_code == 3  # what the file says, not what there is by now


def shards(root, names, count=10):
    for number, name in enumerate(names):
        values = pixels("mnist", count)[:, None].astype(np.float32) / 255 + number
        np.save(root / f"{name}.npy", values)
    return [root / f"{name}.npy" for name in names]


@pytest.mark.parametrize("order", ["cab", "abcd", "ac", "dcb"])
def test_other_files_in_another_order(tmp_path, order):
    paths = {path.stem: path for path in shards(tmp_path, "abcd")}
    out = tmp_path / "s.jsonl"
    interrupted(("score", *(paths[n] for n in "abc"), "--out", out), batches=2)
    result = run("score", *(paths[n] for n in order), "--out", out, "--resume", "--batch-size", 8)
    assert result.exit_code == 0, result.output
    found = ids(out)
    begun = {f"{paths['a']}:{i}" for i in range(10)} | {f"{paths['b']}:{i}" for i in range(8)}
    expected = {f"{paths[n]}:{i}" for n in order for i in range(10)}
    assert len(found) == len(set(found)) and expected <= set(found) <= expected | begun


def test_one_folder_is_not_taken_for_another(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    interrupted(("score", folder, "--out", tmp_path / "s.jsonl"), batches=2)
    for inputs in ((other,), (folder, other)):
        result = run("score", *inputs, "--out", tmp_path / "s.jsonl", "--resume", "--batch-size", 8)
        assert result.exit_code == 2 and "inputs was" in " ".join(result.output.split())


@pytest.mark.parametrize("kind", ["npy", "tar"])
def test_a_file_that_changed_is_refused(tmp_path, kind):
    from tests.data.test_files import npy, tar_of

    def write(order):
        values = pixels("mnist", 30)[order].astype(np.float32)[:, None] / 255
        if kind == "npy":
            np.save(tmp_path / "x.npy", values)
            return tmp_path / "x.npy"
        return tar_of(tmp_path / "x.tar", [(f"{i}.npy", npy(row)) for i, row in enumerate(values)])

    path = write(np.arange(30))
    interrupted(("score", path, "--out", tmp_path / "s.jsonl"), batches=2)
    again = ("score", path, "--out", tmp_path / "s.jsonl", "--resume", "--batch-size", 8)
    status = path.stat()
    write(np.arange(30)[::-1])
    result = run(*again)
    assert result.exit_code == 2 and "changed since" in result.output
    write(np.arange(30))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(*again).exit_code == 0
    assert len(set(ids(tmp_path / "s.jsonl"))) == 30


def test_killed_between_the_last_steps(folder, tmp_path, monkeypatch):
    import gradood.scoring.output as output

    command = ("score", folder, "--out", tmp_path / "s.parquet", "--resume")
    for place in ("to_parquet", "Path.unlink"):

        class Killed(BaseException):
            pass

        def killed(*_, **__):
            raise Killed  # noqa: B023

        with monkeypatch.context() as patch:
            if place == "to_parquet":
                patch.setattr(output, "to_parquet", killed)
            else:
                patch.setattr(output.ScoreFile, "_name", killed)
            with pytest.raises(Killed):
                run(*command)
        assert run(*command).exit_code == 0
        assert len(open_rows(tmp_path / "s.parquet")) == 40
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "s.parquet"]
        (tmp_path / "s.parquet").unlink()


def open_rows(path):
    from gradood.scoring.rows import read_rows

    return list(read_rows(path))


def test_a_second_writer_is_told(folder, tmp_path):
    from gradood.writing import Output

    with Output(tmp_path / "s.jsonl"):
        result = run("score", folder, "--out", tmp_path / "s.jsonl")
    assert result.exit_code == 2 and "another process is writing" in result.output


def test_as_often_as_they_were_seen(tmp_path):
    named = IterableSource([(name, 0) for name in "aaabbc"])
    assert [item.id for item in Remaining(named, ["a", "b", "a"]).items()] == ["a", "b", "c"]
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    twice = open_source([tmp_path / "x.npy", tmp_path / "x.npy"])
    rest = Remaining(twice, [f"{tmp_path / 'x.npy'}:{i}" for i in (0, 1, 2, 1)])
    for _ in range(2):
        assert [item.id[-1] for item in rest.items()] == ["0", "2"]
    assert [item.id[-1] for item in rest.items(1)] == ["2"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills(tmp_path):
    command = [sys.executable, "-m", "tests.cli.kills", str(tmp_path), "--kills", "200"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    assert facts["kills"] >= 200 and facts["amid"] >= 50 and not facts["wrong"]
