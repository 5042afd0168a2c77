import csv
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gradood.data import embedded_classifier

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SETS = 10
SUPERVISED = ("paper's, same set", "paper's, set left out", "paper's, noise only")
DETECTORS = (
    *SUPERVISED,
    *("GradientMahalanobis", "GradientKNN", "GradientGMM"),
    *("MaxSoftmax", "Energy"),
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # As when it runs as a script: its folder comes first.
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("detection")
    # One kind of features of three, and one round of timing of three, to save time.
    monkeypatch.setattr(module, "FEATURES", {"all-hot": ("all-hot",)})
    monkeypatch.setattr(module, "TIMED_ROUNDS", 1)
    return module


def run(script: ModuleType, output: Path, cache: Path) -> tuple[list[dict[str, str]], str]:
    threads = torch.get_num_threads()
    script.main(seeds=1, small=True, count=20, output=output, cache=cache)
    torch.set_num_threads(threads)
    with (output / "detection.csv").open(newline="") as file:
        return list(csv.DictReader(file)), (output / "detection.md").read_text()


def test_the_whole_benchmark_runs_and_repeats_every_digit(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, text = run(script, tmp_path / "first", tmp_path / "cache")
    assert {row["detector"] for row in rows} == set(DETECTORS)
    assert len({(r["detector"], r["anomalous_set"]) for r in rows}) == len(rows) == 8 * SETS
    # Three normal sets and two halves of each anomalous one.
    assert len(list((tmp_path / "cache").iterdir())) == 3 + 2 * SETS

    def mean_auroc(name: str) -> float:
        scores = [float(row["auroc"]) for row in rows if row["detector"] == name]
        return sum(scores) / len(scores)

    # Ten pictures a set to train on: less than from the full benchmark, far more than chance.
    assert mean_auroc("paper's, same set") > 0.93
    assert mean_auroc("GradientKNN") > 0.85
    assert mean_auroc("paper's, noise only") < mean_auroc("paper's, set left out")
    auroc = 100 * mean_auroc("paper's, same set")
    assert f"| paper's, same set | other half of the same set | {auroc:.1f} |" in text

    noise_only = {"paper's, noise only": script.PROTOCOLS["paper's, noise only"]}
    monkeypatch.setattr(script, "PROTOCOLS", noise_only)
    expected = [row for row in rows if row["detector"] not in SUPERVISED[:2]]
    for cache in ("cache", "empty"):
        again, _ = run(script, tmp_path / "again", tmp_path / cache)
        assert again == expected, "the same digits, from the cache or not"


def test_a_protocol_never_trains_on_what_it_leaves_out(script: ModuleType) -> None:
    every = ("mnist", "photos", *script.NOISE)
    same, left_out, noise = (script.PROTOCOLS[name] for name in SUPERVISED)
    for scored in every:
        assert same(scored, every) == (scored,)
        assert set(left_out(scored, every)) == set(every) - {scored}
        assert noise(scored, every) == ("uniform-noise", "gaussian-noise")


def test_norms_come_from_the_cache_only_for_the_same_pictures_weights_and_label(
    script: ModuleType, tmp_path: Path
) -> None:
    suite = script.embedded_suite(0, 8)
    model = embedded_classifier()
    first = script.norms_with_cache(model, tmp_path)(suite.fit, "all-hot")

    def stored() -> int:
        return len(list(tmp_path.iterdir()))

    read = script.norms_with_cache(model, tmp_path)(suite.fit, "all-hot")
    assert stored() == 1
    assert torch.equal(read.values, first.values) and torch.equal(read.logits, first.logits)
    assert read.names == first.names
    norms_of = script.norms_with_cache(model, tmp_path)
    assert len(norms_of(suite.anomalous_known["mnist"], "all-hot").values) == 4
    both = script.features_of(norms_of, ("all-hot", "CE-uniform"), suite.fit)
    assert stored() == 3
    assert both.values.shape == (32, 2, len(first.names))
    assert torch.equal(both.values[:, 0], first.values)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    changed = script.norms_with_cache(model, tmp_path)(suite.fit, "all-hot")
    assert stored() == 4
    assert not torch.equal(changed.values, first.values)
