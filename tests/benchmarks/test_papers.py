"""The first paper's protocol on CIFAR-10: its page, and its command on a few pictures."""

import os

import pytest
import torch

from benchmarks import distro_tables
from benchmarks.experiments.rows import Row
from benchmarks.papers.page import markdown
from benchmarks.papers.replication import Sizes
from benchmarks.papers.variants import READ, Fewer, Linear, filter_norms
from benchmarks.training_sets import coloured, shifted
from gradood.data import embedded_classifier, embedded_images
from gradood.evaluation import evaluate
from gradood.gradients import gradient_norms
from tests.commands import run_module
from tests.pictures import needs_data


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


def test_norms_by_filter_add_up_to_those_by_tensor():
    model, x = embedded_classifier(), embedded_images("mnist")[:5]
    found, column = filter_norms(model, (255 * x).byte()), 0
    x = (255 * x).byte().float() / 255
    norms = gradient_norms(model, x, label="all_hot", loss="bce").values
    for number, parameter in enumerate(model.parameters()):
        rows = found[:, column : column + len(parameter)].sum(1)
        torch.testing.assert_close(rows, norms[:, number], rtol=2e-3, atol=0)
        column += len(parameter)
    assert column == found.shape[1]


def test_a_linear_detector_tells_digits_from_clothes_and_trains_on_fewer():
    model = embedded_classifier()
    clothes, digits = (
        gradient_norms(model, embedded_images(name)[:120], label="all_hot", activations=True)
        for name in ("fashion-mnist", "mnist")
    )
    known, scored = slice(0, 80), slice(80, 120)
    for detector in (Linear("norms"), Linear(*READ), Fewer(Linear("norms"), 0.5)):
        fitted = detector.fit(clothes.select(known), digits.select(known))
        scores = [fitted.score(one.select(scored)) for one in (clothes, digits)]
        assert evaluate(*scores).auroc > 0.9
    few = Fewer(Linear("norms"), 0.5).fit(clothes.select(known), digits.select(known))
    half = slice(0, 80, 2)
    same = Linear("norms").fit(clothes.select(half), digits.select(half))
    assert torch.equal(few.score(digits), same.score(digits))


def distro_rows(guaranteed):
    values = {"clean": 0.8, "adversarial": 0.7, "guaranteed": guaranteed}
    return [
        {"model": model, "set": "svhn-test", "norm": norm, "kind": kind, "auroc": str(value)}
        for model in ("plain", "joint")
        for norm in ("linf", "l2")
        for kind, value in values.items()
    ]


def test_the_distro_page_tells_accuracy_that_is_lost_and_guarantees_that_are_empty():
    accuracy = [{"model": "plain", "accuracy": "0.91"}, {"model": "joint", "accuracy": "0.80"}]
    told = "\n".join(distro_tables.losses(distro_rows(0.4), accuracy, ["plain", "joint"]))
    assert "joint answers 11.0 points less accurately" in told
    assert told.count("guarantees no AUROC beyond chance on svhn-test") == 2
    accuracy[1]["accuracy"] = "0.905"
    assert distro_tables.losses(distro_rows(0.6), accuracy, ["plain", "joint"]) == []


def test_pictures_are_mirrored_and_moved_by_two_pixels_at_most():
    picture = torch.arange(3 * 32 * 32).view(1, 3, 32, 32).remainder(251).byte().repeat(64, 1, 1, 1)
    found = (255 * shifted(picture, torch.Generator().manual_seed(0))).round()
    inner = found[:, :, 2:-2, 2:-2]
    allowed = [
        one[:, y : y + 28, x : x + 28].float()
        for one in (picture[0], picture[0].flip(2))
        for y in range(5)
        for x in range(5)
    ]
    which = [{n for n, one in enumerate(allowed) if torch.equal(one, i)} for i in inner]
    assert all(which) and len({min(one) for one in which}) > 20


def test_black_and_white_become_two_colours():
    grey = torch.tensor([0, 255, 128]).byte().view(3, 1, 1, 1).expand(3, 1, 28, 28)
    found = coloured(torch.cat([grey[:1].expand(1, 1, 28, 28), grey[1:]]), 0)
    assert found.shape == (3, 3, 32, 32) and found.dtype == torch.uint8
    assert all(len(one.flatten(1).unique(dim=1).T) == 1 for one in found)
    assert len(found[:, :, 0, 0].unique(dim=0)) == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_data
def test_the_second_papers_command_writes_the_same_page_twice(tmp_path):
    options = "--normal 4 --anomalous 2 --accuracy 6 --samples 20 --steps 1"
    pages = []
    for number in "12":
        places = ["--data", os.environ["GRADOOD_DATA"], "--out", str(tmp_path)]
        places += ["--cache", str(tmp_path / number)]
        run_module("benchmarks.papers.distro", *options.split(), *places)
        page = (tmp_path / "paper_distro.md").read_text(encoding="utf-8")
        pages.append([line for line in page.splitlines() if not line.startswith("Time, of")])
    assert pages[0] == pages[1]
    assert "| joint, 0.12 |" in "\n".join(pages[0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_data
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
