"""The committed tables of DISTRO: no row contradicts itself, and the joint model keeps its word."""

import csv
from itertools import groupby
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
MODELS = ("plain", "discriminator", "smoothed", "denoised", "joint", "joint, slight noise")


def read(name):
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def grouped_by_cell(name):
    """(model, set, norm) -> kind -> metrics."""
    rows = sorted(read(name), key=lambda r: (r["model"], r["set"], r["norm"]))
    grouped = groupby(rows, lambda r: (r["model"], r["set"], r["norm"]))
    return {key: {row["kind"]: row for row in group} for key, group in grouped}


@pytest.fixture(scope="module")
def cells():
    return grouped_by_cell("distro.csv")


def test_the_table_is_whole(cells):
    models = {model for model, _, _ in cells}
    assert models >= set(MODELS)
    assert len(cells) == len(models) * 10 * 2
    assert all(set(kinds) == {"clean", "guaranteed", "adversarial"} for kinds in cells.values())


@pytest.mark.parametrize("name", ["distro.csv", "paper_distro.csv"])
def test_guaranteed_is_at_most_adversarial_at_most_clean_row_by_row(name):
    for key, kinds in grouped_by_cell(name).items():
        for metric, sign in (("auroc", 1), ("aupr_anomalous", 1), ("fpr95", -1)):
            worst, attacked, clean = (
                sign * float(kinds[kind][metric]) for kind in ("guaranteed", "adversarial", "clean")
            )
            assert worst <= attacked <= clean, (key, metric)


def test_the_joint_guarantee_is_not_trivial_where_the_answers_stay(cells):
    accuracy = {r["model"]: float(r["accuracy"]) for r in read("distro_normal.csv")}
    for model in ("discriminator", "joint", "joint, slight noise"):
        guaranteed = [
            float(kinds["guaranteed"]["auroc"])
            for (which, _, norm), kinds in cells.items()
            if (which, norm) == (model, "linf")
        ]
        assert sum(value > 0.5 for value in guaranteed) >= 3
        assert model == "joint" or accuracy[model] >= accuracy["plain"] - 0.01


def test_on_cifar_the_joint_guarantee_is_not_trivial_where_the_answers_stay():
    rows = read("paper_distro_normal.csv")
    accuracy = {r["model"]: float(r["accuracy"]) for r in rows}
    found = grouped_by_cell("paper_distro.csv")
    for model in ("discriminator", "joint, slight noise"):
        assert accuracy[model] >= accuracy["plain"] - 0.01
        guaranteed = [
            float(kinds["guaranteed"]["auroc"])
            for (which, _, norm), kinds in found.items()
            if (which, norm) == (model, "linf")
        ]
        assert sum(value > 0.5 for value in guaranteed) >= 2


def test_the_denoiser_raises_the_l2_guarantee(cells):
    mean = {
        model: sum(
            float(kinds["guaranteed"]["auroc"])
            for (which, _, norm), kinds in cells.items()
            if (which, norm) == (model, "l2")
        )
        / 10
        for model in MODELS
    }
    assert mean["denoised"] > mean["smoothed"]
    assert mean["joint"] > mean["smoothed"]
