"""Certificates of the gradient detector on CIFAR-10: the page, and the same figures twice."""

import json

import pytest

from benchmarks.cifar_certificates_page import latest, markdown
from tests.pictures import needs_data

FACTS = {"sigma": 0.12, "radius": 0.06, "samples": 100, "fpr": 0.1}
FACTS |= {"sure": 0.999, "count": 40, "fit": 500}


def test_a_page_begins_with_what_is_lost_and_reads_the_last_values(tmp_path):
    lines = ["part,metric,value,torch,date"]
    rows = [("AUROC of medians", 0.4), ("guaranteed at 0.06", 0.3), ("decided rightly", 0.9)]
    rows += [("AUROC of medians", 0.75)]  # measured again
    lines += [f'gradient,"noisy, svhn-test: {metric}",{value},2.14,today' for metric, value in rows]
    lines += ["fdr,svhn-test,0.5,2.14,today"]
    (tmp_path / "found.csv").write_text("\n".join(lines))
    page = markdown(latest(tmp_path / "found.csv", "gradient"), **FACTS)
    losses = page[page.index("## Where it loses") : page.index("## Protocol")]
    assert losses.count("* ") == 1
    assert "* Without a denoiser, the guaranteed AUROC on svhn-test is 30.0: chance." in losses
    assert "| without a denoiser | svhn-test | 75.0 | 30.0 | 90.0 | – |" in page


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_data
def test_certificates_and_attacks_on_them_are_the_same_twice(tmp_path):
    from benchmarks.break_certificates import BUDGETS, run
    from benchmarks.cifar_certificates import gradient

    first, second = (list(gradient(3, 40)) for _ in range(2))
    assert first == second
    kinds = {metric.partition(",")[0] for _, metric, _ in first}
    assert kinds == {"denoised", "noisy"}

    budget = BUDGETS["cifar-gradient"]._replace(pictures=8, chunk=8, restarts=1, steps=2)
    rows = []
    for number in "12":
        work = tmp_path / number
        work.mkdir()
        run("cifar-gradient", budget, work)
        rows.append(json.loads((work / "cifar-gradient-0.json").read_text()))
    assert rows[0] == rows[1]
    assert {row["claim"] for row in rows[0]} >= {"median"}
