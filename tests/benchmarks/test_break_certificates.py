"""The campaign of attacks on certificates: what a report is made of."""

import json

import pytest

from benchmarks import break_certificates
from benchmarks.break_certificates import BUDGETS, Row, collected, report, run


def row(part, picture, broken):
    return Row(part, "class", 0.9, picture, 0.1, broken, 0.5)


def test_a_report_keeps_rows_of_parts_that_were_not_run_again(tmp_path):
    old = [row("class", 1, True), row("cifar-class", 2, False)]
    file = tmp_path / "break_certificates.csv"
    break_certificates.write(old, file)
    new = row("cifar-class", 0, False)
    (tmp_path / "cifar-class-0.json").write_text(json.dumps([new._asdict()]))
    assert collected(tmp_path, file) == [old[0], new]
    page = report(collected(tmp_path, file))
    assert "| class | class | 0.100 | 1 | 1 |" in page
    assert "| cifar-class | class | 0.100 | 1 | 0 |" in page


@pytest.mark.parametrize("part", ["class", "confidence"])
def test_certificates_hold_and_claims_beyond_them_do_not(part, tmp_path):
    budget = BUDGETS[part]._replace(pictures=10, chunk=10, samples=60, restarts=1, steps=3)
    run(part, budget, tmp_path)
    rows = [Row(**r) for r in json.loads((tmp_path / f"{part}-0.json").read_text())]
    inside, beyond = ([r for r in rows if (r.reach < 1) == near] for near in (True, False))
    assert len(inside) >= 8 and not any(r.broken for r in inside)
    assert any(r.broken for r in beyond)
