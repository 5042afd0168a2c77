"""The command line, in process and as a real command."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from gradood.cli import app
from gradood.errors import InputError
from tests.processes import python

RUNNER = CliRunner()


def run(*arguments, **environment):
    environment = {**os.environ, "COLUMNS": "100", **environment}
    return python("-m", "gradood", *arguments, environment=environment)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A real run of the command on a few pictures: (the process, the page)."""
    out = tmp_path_factory.mktemp("demo") / "new folder"
    process = run("demo", "--out", str(out), "--images", "80", "--seed", "1")
    return process, out / "index.html"


def test_demo_prints_every_set_and_says_where_the_page_is(demo):
    process, page = demo
    assert process.returncode == 0, process.stderr
    for name in ("mnist", "animals", "glyphs", "photos", "digits", "FGSM 8/255", "PGD 8/255"):
        assert re.search(rf"^ *{name} +(\d+\.\d +){{4}}\d+\.\d *$", process.stdout, re.MULTILINE)
    assert "pictures/s" in process.stdout
    assert str(page) in process.stdout
    # A demonstration this small is told that it is.
    assert re.fullmatch(r"a GradientDetector fitted on \d+ normal .*\n", process.stderr)


def test_demo_detects_anomalies(demo):
    mean = re.search(r"^ *mean +(.*)$", demo[0].stdout, re.MULTILINE)
    seen, unseen, *others = map(float, mean.group(1).split())
    assert seen > 90 and unseen > 80 and min(others) > 60


def test_page_needs_nothing_from_outside(demo):
    html = demo[1].read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\'>)]{0,40})', html)
    assert len(sources) > 50
    # Pictures inside the page, and what figures define inside themselves.
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*|http-equiv", "", html)
    assert "<script" not in html


def test_page_shows_every_section(demo):
    html = demo[1].read_text(encoding="utf-8")
    for heading in (
        "How well",
        "distributed",
        "ROC",
        "Precision and recall",
        "Which layers",
        "Pictures",
        "How this was made",
    ):
        assert heading in html
    # Two histograms, ROC and precision of each of seven sets, and the map of layers.
    figures = sorted(demo[1].parent.glob("*.png"))
    assert len(figures) == html.count("<svg") == 4 * 7 + 1
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    # Eight pictures of the normal set and of each of seven others, at most.
    assert 40 <= html.count("<figure") <= 64


def test_info_json_is_json():
    result = RUNNER.invoke(app, ["info", "--json"])
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert facts["cpu"]["threads"] == torch.get_num_threads()
    assert facts["backends"]["torch"] == {"available": True, "detail": None}
    for state in (*facts["data sets"].values(), facts["cuda"]):
        assert state["available"] or state["reason"]
    assert facts["data sets"]["embedded mnist"]["available"]


def test_info_table_gives_the_reason_for_what_is_missing():
    facts = json.loads(RUNNER.invoke(app, ["info", "--json"]).stdout)
    process = run("info", COLUMNS="400")
    assert process.returncode == 0, process.stderr
    for state in facts["backends"].values():
        if isinstance(state, dict) and not state["available"]:
            assert state["reason"] in process.stdout
    assert torch.__version__.split("+")[0] in process.stdout


def test_an_error_is_one_red_sentence_and_exit_status_two(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    process = run("demo", "--out", str(file), FORCE_COLOR="1")
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("\x1b[31mcannot write to --out")
    assert "Traceback" not in process.stderr


def test_debug_shows_the_traceback(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    process = run("--debug", "demo", "--out", str(file))
    assert process.returncode == 1
    assert "Traceback" in process.stderr and "InputError" in process.stderr
    with pytest.raises(InputError, match="--out"):
        RUNNER.invoke(app, ["--debug", "demo", "--out", str(file)], catch_exceptions=False)


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["demo", "--images", "3"], ["demo", "--seed", "x"], ["info", "x"]]
)
def test_wrong_usage_exits_with_two(arguments):
    assert RUNNER.invoke(app, arguments).exit_code == 2


def test_help_is_quick_and_lists_the_commands():
    process = run("--help")
    assert process.returncode == 0
    assert "demo" in process.stdout and "info" in process.stdout
    code = "import sys, gradood.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=240).returncode == 0
