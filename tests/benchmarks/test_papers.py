"""The first paper's protocol on CIFAR-10: its page, and its command on a few pictures."""

import os

import pytest

from benchmarks.experiments.rows import Row
from benchmarks.papers.page import markdown
from benchmarks.papers.replication import Sizes
from tests.commands import run_module


def row(part, detector, name, auroc):
    return Row(part, "resnet20", 0, detector, name, auroc, auroc, 100 - auroc, 50, 40)


def rows(left_out, adaptive):
    found = [row("supervised", "all-hot, same", "svhn-test", 99.0)]
    found += [row("supervised", "activations, same", "svhn-test", 98.0)]
    found += [row("supervised", "all-hot, left out", "svhn-test", left_out)]
    found += [row("sets", "Energy", "svhn-test", 90.0)]
    found += [row("adaptive", "Energy", "adaptive 4/255", adaptive)]
    return found


def test_a_page_begins_with_what_is_lost():
    page = markdown(rows(85.0, 30.0), {"resnet20": 91.0}, Sizes(), "command")
    losses = page[page.index("## Where it loses") : page.index("## Protocol")]
    assert "svhn-test (85.0; Energy 90.0)" in losses
    assert "Energy at 4/255" in losses
    assert "activations" not in losses  # the control is behind


def test_what_is_not_lost_is_not_said():
    page = markdown(rows(95.0, 60.0), {"resnet20": 91.0}, Sizes(), "command")
    losses = page[page.index("## Where it loses") : page.index("## Protocol")]
    assert losses.count("* ") == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("GRADOOD_DATA" not in os.environ, reason="GRADOOD_DATA names no folder of sets")
def test_the_command_writes_the_same_page_twice(tmp_path):
    options = (
        "--network resnet20 --each 24 --normal 100 --fit 60 --attacked 6 --adaptive 4 --steps 2"
    )
    pages = []
    for number in "12":
        places = ["--data", os.environ["GRADOOD_DATA"], "--output", str(tmp_path)]
        places += ["--cache", str(tmp_path / number)]
        run_module("benchmarks.papers.gradients", *options.split(), *places)
        pages.append((tmp_path / "paper_gradients.md").read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    assert "An attacker who knows the detector" in pages[0]
