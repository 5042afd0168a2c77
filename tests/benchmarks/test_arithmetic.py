"""``gradood selftest``: wrong arithmetic is found, also where it crashes or never comes back."""

import json

import pytest
from typer.testing import CliRunner

from gradood.benchmarking import arithmetic
from gradood.benchmarking.arithmetic import OPERATIONS, Operation, Verdict, answer
from gradood.cli import app


@pytest.mark.parametrize(
    "name", [n for n, operation in OPERATIONS.items() if not operation.avoided]
)
def test_this_machine_has_right_what_gradood_needs(name):
    right, detail = answer(name)
    assert right, detail


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_command_checks_with_one_thread_and_with_two(tmp_path, monkeypatch, few):
    out = tmp_path / "selftest.json"
    for name in list(OPERATIONS)[3:] if few else ():
        monkeypatch.delitem(OPERATIONS, name)
    result = CliRunner().invoke(app, ["selftest", "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    seen = {(check["name"], check["threads"]) for check in found["checks"]}
    assert seen == {(name, threads) for name in OPERATIONS for threads in (1, 2)}
    assert found["failed"] == []


def test_what_is_wrong_and_needed_fails(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "eigenvalues", Operation(lambda: 1e-3, 1e-10))
    assert answer("eigenvalues") == (False, "relative error 1e-03")
    monkeypatch.setitem(OPERATIONS, "eigenvalues", Operation(lambda: float("nan"), 1e-10))
    assert not answer("eigenvalues")[0]
    needed = Verdict("eigenvalues", 2, False, "", "")
    assert not needed.passed and needed._replace(avoided="by other means").passed


def test_a_process_that_ends_early_or_never_is_a_wrong_answer(monkeypatch):
    crash = arithmetic._run(1, ["eigenvalues", "no such operation", "matrix products"])
    assert crash[0][:2] == ("eigenvalues", True)
    assert crash[1] == ("no such operation", False, "the process ended with status 1")
    assert len(crash) == 2
    monkeypatch.setattr(arithmetic, "PATIENCE", 0.01)
    assert arithmetic._run(1, ["eigenvalues"]) == [("eigenvalues", False, "no answer within 0 s")]
