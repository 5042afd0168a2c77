"""gradood score, whatever interrupts it: no row is lost, none is there twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import gradood
from tests.commands import rows, run


def test_a_run_goes_on_only_under_its_own_settings(data, tmp_path):
    out = tmp_path / "scores.jsonl"
    command = ("score", data / "mnist", "--detector", data / "detector", "--out", out)
    interrupted(command, batches=1)
    assert run(*command).exit_code == 2  # would throw the rows away
    other = run(*command, "--resume", "--layers", 1)
    assert other.exit_code == 2 and "layers was 3, now 1" in " ".join(other.output.split())
    assert run(*command, "--resume").exit_code == 2  # another batch size
    assert run(*command, "--resume", "--batch-size", 8).exit_code == 0
    whole = tmp_path / "whole.jsonl"
    run(*command[:-1], whole, "--batch-size", 8)
    assert out.read_bytes() == whole.read_bytes()


def interrupted(command, batches):
    """Run until so many batches are written."""
    from gradood.scoring.output import ScoreFile

    class Stop(BaseException):
        pass

    def append(self, *arguments, original=ScoreFile.append):
        original(self, *arguments)
        append.left -= 1
        if not append.left:
            raise Stop

    append.left = batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoreFile, "append", append)
        with pytest.raises(Stop):
            run(*command, "--batch-size", 8, catch_exceptions=False)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_that_the_state_does_not_count_are_written_once(data, tmp_path, suffix):
    out, whole = tmp_path / f"scores.{suffix}", tmp_path / f"whole.{suffix}"
    command = ("score", data / "mnist", "--detector", "energy", "--batch-size", 8)
    run(*command, "--out", whole)
    interrupted(("score", data / "mnist", "--detector", "energy", "--out", out), batches=2)
    with open(tmp_path / f"scores.{suffix}.partial", "a") as partial:
        partial.write('{"id": "00016.png", "sco')  # killed in the middle of a row
    assert run(*command, "--out", out, "--resume").exit_code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_run_that_scored_nothing_leaves_nothing(data, tmp_path):
    out = tmp_path / "scores.jsonl"
    assert run("score", data / "mnist", "--out", out, "--detector", "missing").exit_code == 2
    assert not list(tmp_path.iterdir())
    assert run("score", data / "mnist", "--out", out).exit_code == 0


def test_a_run_that_scored_nothing_leaves_an_old_result_and_is_begun_again(data, tmp_path):
    out = tmp_path / "scores.jsonl"
    out.write_text("old\n")
    assert run("score", data / "mnist", "--out", out, "--detector", "missing").exit_code == 2
    assert out.read_text() == "old\n"
    assert run("score", data / "mnist", "--out", out, "--resume").exit_code == 0
    assert len(rows(out)) == 40


def test_an_old_result_is_replaced_and_not_taken_for_a_new_one(data, tmp_path):
    out = tmp_path / "scores.jsonl"
    out.write_text("old\n")
    interrupted(("score", data / "mnist", "--out", out), batches=1)
    assert out.read_text() == "old\n"
    assert run("score", data / "mnist", "--out", out, "--resume", "--batch-size", 8).exit_code == 0
    assert len(rows(out)) == 40


def test_batches_shrink_when_memory_runs_out(data, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "scores.jsonl"
    run("score", data / "mnist", "--detector", "energy", "--out", whole)
    score = gradood.Energy.score

    def limited(self, x):
        # What the allocator does with more than 5 pictures' worth of memory.
        return score(self, x) if len(x) <= 5 else torch.empty(1 << 60)

    monkeypatch.setattr(gradood.Energy, "score", limited)
    result = run("score", data / "mnist", "--detector", "energy", "--out", out)
    assert result.exit_code == 0, result.output
    assert "going on with 5" in result.output
    assert [row["score"] for row in rows(out)] == pytest.approx(
        [row["score"] for row in rows(whole)], rel=1e-5
    )


def test_ctrl_c_says_how_to_go_on(data, tmp_path, monkeypatch):
    from gradood.scoring.scores import RowScorer

    def interrupt(self, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(RowScorer, "lines", interrupt)
    result = run("score", data / "mnist", "--out", tmp_path / "scores.jsonl")
    assert result.exit_code == 130 and "--resume" in result.output


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_ten_kills_change_nothing(data, tmp_path, suffix):
    """Ten times kill -9, then --resume: the file of an undisturbed run, byte for byte."""
    many = tmp_path / "many"
    many.mkdir()
    for i in range(2000):
        shutil.copy(data / "mnist" / f"{i % 40:05}.png", many / f"{i:05}.png")
    (many / "01234.png").write_bytes(b"no picture")
    command = [
        sys.executable, "-m", "gradood", "score", str(many), "--detector", str(data / "detector"),
        "--batch-size", "32", "--on-error", "skip",
    ]  # fmt: skip
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"scores.{suffix}"
    begin = time.monotonic()
    assert subprocess.run([*command, "--out", str(whole)], timeout=600).returncode == 3
    seconds = time.monotonic() - begin
    generator = np.random.default_rng(0)
    state = out.with_name(out.name + ".state")
    kills = 0
    for _ in range(60):
        before = json.loads(state.read_text())["bytes"] if state.exists() else 0
        process = subprocess.Popen([*command, "--out", str(out), "--resume"])
        # From when it has begun to write; the start takes most of the time otherwise.
        while process.poll() is None and (
            not state.exists() or json.loads(state.read_text())["bytes"] == before
        ):
            time.sleep(0.002)
        time.sleep(generator.random() * seconds / 25)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        if kills == 10 or out.exists():
            break
    assert kills == 10
    final = subprocess.run([*command, "--out", str(out), "--resume"], timeout=600)
    assert final.returncode == 3
    assert out.read_bytes() == whole.read_bytes()
