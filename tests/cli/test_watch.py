"""gradood watch: JSON lines, exit status, a page, from files, pipes and files that grow."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import gradood
from gradood.cli import app
from gradood.data import embedded_classifier, embedded_images
from tests.pictures import write_pictures

RUNNER = CliRunner()


def run(*arguments, **keywords):
    return RUNNER.invoke(app, list(map(str, arguments)), **keywords)


def events(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def write_scores(path, alarms, **more):
    rows = ({"id": str(i), "score": float(a), "decision": 1 if a else -1, "error": None, **more}
            for i, a in enumerate(alarms))  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def alarms(count, rate, seed=0):
    return np.random.default_rng(seed).random(count) < rate


def test_a_steady_stream_and_one_that_rises(tmp_path):
    steady = write_scores(tmp_path / "a.jsonl", alarms(3000, 0.05))
    high = write_scores(tmp_path / "b.jsonl", alarms(2000, 0.2))
    result = run("watch", steady, "--rate", 0.05)
    assert result.exit_code == 0, result.output
    assert [e["event"] for e in events(result)] == ["watch", "watch", "watch", "done"]
    assert not events(result)[-1]["risen"]
    result = run("watch", steady, high, "--rate", 0.05, "--every", 10_000)
    assert result.exit_code == 4
    assert [e["event"] for e in events(result)] == ["risen", "done"]
    last = events(result)[-1]
    assert 3000 < last["risen_at"] < 3400 and last["seen"] == 5000
    assert last["alarms"] == alarms(3000, 0.05).sum() + alarms(2000, 0.2).sum()
    result = run("watch", steady, high, "--rate", 0.05, "--stop")
    assert events(result)[-1]["seen"] == last["risen_at"]


def test_the_detector_knows_its_rate_and_threshold(tmp_path):
    normal = embedded_images("fashion-mnist-train")
    detector = gradood.Energy(embedded_classifier()).calibrate(normal[:200], fpr=0.1)
    detector.save(tmp_path / "d")
    for name in ("fashion-mnist", "mnist"):
        write_pictures(tmp_path / name, name, 200)
        out = tmp_path / f"{name}.parquet"
        run("score", tmp_path / name, "--detector", tmp_path / "d", "--out", out)
        result = run("watch", out, "--detector", tmp_path / "d")
        assert result.exit_code == (4 if name == "mnist" else 0), result.output
        last = events(result)[-1]
        expected = detector.predict((embedded_images(name)[:200] * 255).round() / 255).sum()
        assert last["alarms"] == expected and last["needed"] == 200
        assert 0.1 < last["rate"] < 0.2  # what 200 inputs prove of 10 %


def test_bare_numbers_from_a_pipe(tmp_path):
    text = "".join(f"{score}\n" for score in [0.1] * 300 + [0.9] * 10)
    result = run("watch", "-", "--rate", 0.05, "--threshold", 0.5, input=text)
    assert result.exit_code == 4 and events(result)[-1]["alarms"] == 10


def test_inputs_without_a_score_are_alarms(tmp_path):
    path = tmp_path / "s.jsonl"
    row = {"id": "a", "score": None, "decision": None, "error": "no readable picture"}
    write_scores(path, [False] * 100)
    with open(path, "a") as file:
        file.write((json.dumps(row) + "\n") * 30)
    result = run("watch", path, "--rate", 0.05)
    assert result.exit_code == 4
    assert events(result)[-1]["alarms"] == events(result)[-1]["unscored"] == 30


def test_the_test_is_carried_over(tmp_path):
    whole = write_scores(tmp_path / "w.jsonl", alarms(600, 0.1))
    for part in range(3):
        write_scores(tmp_path / f"{part}.jsonl", alarms(600, 0.1)[200 * part : 200 * part + 200])
        carried = run(
            "watch", tmp_path / f"{part}.jsonl", "--rate", 0.05, "--state", tmp_path / "t"
        )
    found, expected = (events(r)[-1] for r in (carried, run("watch", whole, "--rate", 0.05)))
    for name in ("seen", "alarms", "capital", "risen_at"):
        assert found[name] == expected[name]
    other = run("watch", whole, "--rate", 0.06, "--state", tmp_path / "t")
    assert other.exit_code == 2 and "tests a rate of 0.05" in " ".join(other.output.split())


def test_a_page_that_renews_itself_until_the_end(tmp_path):
    path = write_scores(tmp_path / "s.jsonl", alarms(3000, 0.05))
    run("watch", path, "--rate", 0.01, "--page", tmp_path / "page")
    html = (tmp_path / "page" / "index.html").read_text()
    assert "has risen" in html and html.count("<svg") == 2 and "<script" not in html
    assert 'http-equiv="refresh"' not in html  # it is over


def test_a_file_that_grows_is_followed(tmp_path):
    path = write_scores(tmp_path / "s.jsonl", [False] * 50)
    command = [sys.executable, "-m", "gradood", "watch", str(path), "--rate", "0.05", "--follow",
               "--stop", "--every", "10", "--page", str(tmp_path / "page")]  # fmt: skip
    root = Path(gradood.__file__).parents[1]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    for _ in range(5):
        assert json.loads(process.stdout.readline())["event"] == "watch"
    time.sleep(0.3)
    with open(path, "a") as file:
        line = json.dumps({"id": "x", "score": 1.0, "decision": 1}) + "\n"
        file.write(line * 5 + line[:10])
        file.flush()
        time.sleep(0.3)
        file.write(line[10:] + line * 10)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 4
    assert json.loads(output.splitlines()[-1])["risen"]


@pytest.mark.parametrize("lines, arguments, said", [
    ("", ("--rate", 0.05), "no scores to watch"),
    ('{"score": 1.0}', ("--rate", 0.05), "without decisions"),
    ('{"score": "1"}', ("--rate", 0.05, "--threshold", 1), "line 1"),
    ("NaN", ("--rate", 0.05, "--threshold", 1), "line 1"),
    ("x", ("--rate", 0.05, "--threshold", 1), "line 1"),
    ("1.0", (), "--rate"), ("1.0", ("--rate", 2), "rate = 2"),
    ("1.0", ("--rate", 0.1, "--alpha", 0), "--alpha"),
    ("1.0", ("--rate", 0.1, "--threshold", "nan"), "--threshold nan"),
])  # fmt: skip
def test_mistakes_get_a_sentence(lines, arguments, said):
    result = run("watch", "-", *arguments, input=lines + "\n" if lines else "")
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output
