"""Where commands write, and what they say when they cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import gradood
from gradood.cli import _OneSentenceErrors, app
from tests.commands import run
from tests.pictures import write_pictures

ROOT = str(Path(gradood.__file__).parents[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    write_pictures(root / "in", "fashion-mnist", 30)
    done = CliRunner().invoke(app, ["score", str(root / "in"), "--out", str(root / "s.jsonl")])
    assert done.exit_code == 0, done.output
    return root


def shell(text, cwd, limit="true"):
    command = text.replace("gradood", f"{sys.executable} -m gradood", 1)
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.run(
        ["bash", "-c", f"{limit}; {command}"], cwd=cwd, env=environment, capture_output=True,
        text=True, timeout=200,
    )  # fmt: skip


#: Every command that writes a file, on few inputs.
COMMANDS = {
    "score": ("score", "{data}/in"),
    "fit": ("fit", "{data}/in", "--detector", "gradient-knn", "--fpr", "0.2"),
    "evaluate": ("evaluate", "--normal", "{data}/s.jsonl", "--anomalous", "{data}/s.jsonl"),
    "certify": ("certify", "--count", "2", "--n", "50"),
}


def command(name, data, out):
    return (*(part.format(data=data) for part in COMMANDS[name]), "--out", out)


@pytest.mark.parametrize("name", COMMANDS)
def test_folders_are_made_links_followed_and_nothing_left_over(data, tmp_path, name):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "old").write_text("old")
    (tmp_path / "link").symlink_to("store/old")
    for out in (tmp_path / "new" / "er" / "out", tmp_path / "link"):
        result = run(*command(name, data, out))
        assert result.exit_code == 0, result.output
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "store" / "old").stat().st_size > 20
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["old"]
    assert [p.name for p in (tmp_path / "new" / "er").iterdir()] == ["out"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "out, said",
    [
        ("folder", "is a folder"),
        ("file/x", "cannot write"),
        ("file/x/y", "cannot write"),
        ("busy", "another process"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(
    data, tmp_path, name, out, said, monkeypatch
):
    from gradood.writing import Output

    def work(*_, **__):
        raise AssertionError("it was begun")

    monkeypatch.setattr("gradood.scoring.models.load_model", work)
    monkeypatch.setattr("gradood.scoring.rows.read_rows", work)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("in the way")
    with Output(tmp_path / "busy"):
        result = run(*command(name, data, tmp_path / out))
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    "name",
    ["score", *(pytest.param(n, marks=pytest.mark.slow) for n in ("fit", "evaluate", "certify"))],
)
def test_a_full_disk_is_a_sentence_and_leaves_the_older_file(data, tmp_path, name):
    (tmp_path / "out").write_text("older\n")
    done = shell(f"gradood {' '.join(command(name, data, 'out'))}", tmp_path, "ulimit -f 0")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "File too large" in done.stderr.strip().splitlines()[-1]
    assert (tmp_path / "out").read_text() == "older\n"


def test_scores_into_pipes(data, tmp_path):
    done = shell("gradood score in --out /dev/stdout", data)
    assert done.returncode == 0 and "30 inputs scored" in done.stderr
    expected = (data / "s.jsonl").read_text()
    assert done.stdout == expected
    done = shell("gradood score in --out pipe & cat pipe > copy; wait $!", data, "mkfifo pipe")
    assert done.returncode == 0 and (data / "copy").read_text() == expected
    done = shell("gradood score in --out /dev/stdout | head -n 2; exit ${PIPESTATUS[0]}", data)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    refused = (("/dev/stdout", "--json"), ("/dev/null", "--resume"), ("/dev/null", "--report"))
    for out, more in (*refused, ("/dev/full", "")):
        extra = [more, *([data / "r"] if more == "--report" else [])] if more else []
        result = run("score", data / "in", "--out", out, *extra)
        assert result.exit_code == 2
        assert ("is no file" if more else "No space left") in " ".join(result.output.split())


@pytest.mark.parametrize("ending", ["csv", "TSV", "xlsx", "jsonl.gz", "npy"])
def test_formats_that_are_not_written_are_refused_at_once(tmp_path, ending):
    result = run("score", "missing", "--out", tmp_path / f"s.{ending}")
    assert result.exit_code == 2
    result = run("score", tmp_path, "--out", tmp_path / f"s.{ending}")
    assert "--out takes .jsonl" in " ".join(result.output.split())


@pytest.mark.parametrize(
    "name", ["scores", "scores.v1.2", "s.JSONL", "s.ndjson", "s.Parquet", "s.pq"]
)
def test_what_score_writes_evaluate_reads(data, tmp_path, name):
    out = tmp_path / name
    assert run("score", data / "in", "--out", out, "--detector", "energy").exit_code == 0
    for detector in ((), ("--detector", "energy")):
        result = run("evaluate", "--normal", out, "--anomalous", out, "--json", *detector)
        assert result.exit_code == 0, result.output
        (metrics,) = json.loads(result.stdout)["sets"].values()
        assert metrics["auroc"] == pytest.approx(0.5)


@pytest.mark.parametrize("row, said", [
    ('{"id": "a", "score": "0.5", "error": null}', "the score of row 1 is '0.5'"),
    ('{"id": "a", "score": NaN, "error": null}', "row 1 is nan"),
    ('{"id": "a", "score": true, "error": null}', "row 1 is True"),
    ('{"id": "a", "score": [1], "error": null}', "row 1 is [1]"),
    ('{"id": 3, "score": 1.0, "error": null}', "the id of row 1 is 3"),
    ('{"id": "a", "error": null}', "has no 'score'"),
    ('["a", 1]', "cannot read scores"), ('{"id": "a"', "cannot read scores"),
    ("3", "cannot read scores"), ("\\xff", "cannot read scores"),
])  # fmt: skip
def test_scores_that_are_none_are_named(tmp_path, row, said):
    (tmp_path / "s.jsonl").write_bytes(row.encode().replace(b"\\xff", b"\xff") + b"\n")
    result = run("evaluate", "--normal", tmp_path / "s.jsonl", "--anomalous", tmp_path / "s.jsonl")
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output


ERRORS = {
    "os": (OSError(28, "No space left on device", "x/y"), "x/y: No space left on device"),
    "memory": (MemoryError(), "memory is not enough"),
    "other": (KeyError("name"), "KeyError: 'name' (gradood --debug"),
    "long": (RuntimeError("first line\nsecond"), "RuntimeError: first line (gradood"),
    "silent": (ZeroDivisionError(), "ZeroDivisionError: no reason given"),
    "exit": (SystemExit(0), "a module that was imported ended the program (0)"),
    "ours": (gradood.errors.InputError("a sentence"), "a sentence"),
}


@pytest.mark.parametrize("error, said", ERRORS.values(), ids=ERRORS)
def test_every_error_is_one_sentence(error, said):
    other = typer.Typer(cls=_OneSentenceErrors, pretty_exceptions_enable=False)

    @other.callback()
    def options(debug: bool = False):
        """Options of all commands."""

    @other.command()
    def fails():
        raise error

    result = CliRunner().invoke(other, ["fails"])
    assert result.exit_code == 2 and said in result.output
    assert len(result.output.strip().splitlines()) == 1
    if isinstance(error, SystemExit):
        return
    with pytest.raises(type(error)):
        CliRunner().invoke(
            other, ["--debug", "fails"], catch_exceptions=False, standalone_mode=False
        )


def test_a_full_standard_output_is_a_sentence(tmp_path):
    done = shell("gradood info > /dev/full", tmp_path)
    assert done.returncode == 2 and "No space left on device" in done.stderr
    assert "Exception ignored" not in done.stderr and "Traceback" not in done.stderr
