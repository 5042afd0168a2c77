"""gradood evaluate --attack and --guarantee, on real pictures."""

import json

import pytest

from tests.commands import run
from tests.pictures import write_pictures

RANKED = ("auroc", "aupr_anomalous", "aupr_normal")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for folder, name, count in (
        ("normal", "fashion-mnist", 12),
        ("mnist", "mnist", 12),
        ("few", "mnist", 5),
    ):
        write_pictures(root / folder, name, count)
    return root


def test_guaranteed_and_attacked_metrics_are_worse_than_clean_ones(data, tmp_path):
    out = tmp_path / "metrics.json"
    result = run(
        "evaluate", "--normal", data / "normal", "--anomalous", data / "mnist", "--detector",
        "energy", "--attack", "linf:0.02", "--attack", "l2:0.001", "--guarantee", "l2:0.05",
        "--steps", 5, "--restarts", 1, "--samples", 100, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (found,) = json.loads(out.read_text())["sets"].values()
    strong, weak = found["attacked linf:0.02"], found["attacked l2:0.001"]
    bound = found["guaranteed l2:0.05"]
    for name in RANKED:
        assert strong[name] < found[name] and strong[name] <= weak[name] <= found[name]
        assert 0 <= bound[name] < found[name]
    assert strong["fpr95"] >= weak["fpr95"] >= found["fpr95"]
    assert "attacked linf:0.02" in result.output and "guaranteed l2:0.05" in result.output


def test_normal_inputs_are_certified_once_for_all_sets(data, tmp_path, monkeypatch):
    from gradood import smoothing

    certified = []

    def counted(detector, x, *arguments, original=smoothing.certify_quantile, **options):
        certified.append(len(x))
        return original(detector, x, *arguments, **options)

    monkeypatch.setattr(smoothing, "certify_quantile", counted)
    common = ("evaluate", "--normal", data / "normal", "--detector", "energy", "--json",
              "--guarantee", "l2:0.05", "--samples", 100)  # fmt: skip
    sets = ("--anomalous", data / "mnist", "--anomalous", data / "few")
    both = json.loads(run(*common, *sets).output)["sets"]
    assert certified == [12, 12, 5]
    (alone,) = json.loads(run(*common, *sets[:2]).output)["sets"].values()
    for name, value in both[str(data / "mnist")].items():
        if name.startswith("guaranteed"):  # by other noise
            assert value["auroc"] == pytest.approx(alone[name]["auroc"], abs=0.2)
        else:
            assert value == alone[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--attack", "l1:0.1"), "expected linf:RADIUS or l2:RADIUS"),
        (("--attack", "l2"), "--attack l2: expected"),
        (("--guarantee", "linf:0.1"), "expected l2:RADIUS"),
        (("--guarantee", "l2:0"), "a radius above 0"),
        (("--guarantee", "l2:-1"), "expected l2:RADIUS"),
    ],
)
def test_mistakes_get_a_sentence(data, arguments, message):
    inputs = ("--normal", data / "normal", "--anomalous", data / "mnist", "--detector", "energy")
    result = run("evaluate", *inputs, *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


def test_scores_cannot_be_attacked(data, tmp_path):
    scores = tmp_path / "scores.jsonl"
    assert run("score", data / "mnist", "--detector", "energy", "--out", scores).exit_code == 0
    result = run(
        "evaluate", "--normal", scores, "--anomalous", scores, "--attack", "l2:0.1",
        "--detector", "energy",
    )  # fmt: skip
    assert result.exit_code == 2 and "need the inputs" in " ".join(result.output.split())
