"""gradood fit, score and evaluate, on real pictures."""

import json
import shutil

import numpy as np
import pytest
import torch

import gradood
from gradood.data import embedded_classifier, embedded_images
from tests.commands import events, rows, run


def test_fit_knows_the_presets(data, tmp_path):
    made = run("fit", data / "normal", "--detector", "gradient:adversarial", "--fpr", "0.2",
               "--out", tmp_path / "d")  # fmt: skip
    assert made.exit_code == 0, made.output
    assert gradood.load(tmp_path / "d", embedded_classifier()).preset == "adversarial"


def test_fit_is_that_of_the_library(data):
    model = embedded_classifier()
    x = (embedded_images("fashion-mnist-train")[:150] * 255).round() / 255
    held_out = torch.arange(150) % 5 == 0
    expected = gradood.GradientDetector(model).fit(x[~held_out]).calibrate(x[held_out], fpr=0.05)
    found = gradood.load(data / "detector", model)
    probe = embedded_images("mnist")[:5]
    torch.testing.assert_close(found.score(probe), expected.score(probe))
    assert found.threshold == pytest.approx(expected.threshold, rel=1e-5)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_score_writes_what_the_library_computes(data, tmp_path, suffix):
    out = tmp_path / "new" / f"scores.{suffix}"
    result = run("score", data / "mnist", "--detector", data / "detector", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert [e["event"] for e in events(result) if e["event"] != "progress"] == ["start", "done"]
    assert events(result)[-1]["scored"] == 40
    if suffix == "parquet":
        found = pytest.importorskip("pyarrow.parquet").read_table(out).to_pylist()
    else:
        found = rows(out)
    model = embedded_classifier()
    detector = gradood.load(data / "detector", model)
    x = (embedded_images("mnist")[:40] * 255).round() / 255
    assert [row["id"] for row in found] == [f"{i:05}.png" for i in range(40)]
    assert [row["score"] for row in found] == pytest.approx(detector.score(x).tolist(), rel=1e-4)
    assert [row["decision"] == 1 for row in found] == detector.predict(x).tolist()
    deviations = detector.deviations(gradood.gradient_norms(model, x))
    names = gradood.gradient_norms(model, x).names
    most = deviations.abs().topk(3).indices.tolist()
    assert [[e["name"] for e in row["layers"]] for row in found] == [
        [names[i] for i in chosen] for chosen in most
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_p_values_are_the_librarys(data, tmp_path, suffix):
    out = tmp_path / f"scores.{suffix}"
    options = ("--detector", data / "detector", "--out", out, "--p-values")
    result = run("score", data / "mnist", *options)
    assert result.exit_code == 0, result.output
    if suffix == "parquet":
        found = pytest.importorskip("pyarrow.parquet").read_table(out).to_pylist()
    else:
        found = rows(out)
    detector = gradood.load(data / "detector", embedded_classifier())
    scores = torch.tensor([row["score"] for row in found])
    p = detector.p_values_of(scores)
    assert [row["p_value"] for row in found] == pytest.approx(p.tolist())
    assert 1 / 31 <= p.min() and p.max() <= 1
    refused = run("score", data / "mnist", "--p-values", "--out", tmp_path / "b.jsonl")
    assert refused.exit_code == 2 and "calibrate" in refused.output


def test_deviations_are_standardised_log_norms(data):
    model = embedded_classifier()
    normal = embedded_images("fashion-mnist-train")[:100]
    detector = gradood.GradientMahalanobis(model, label=["all_hot", "predicted"]).fit(normal)
    norms = gradood.gradient_norms(model, normal, label=["all_hot", "predicted"])
    logs = norms.values.log()
    z = (logs - logs.mean(0)) / logs.std(0)
    expected = torch.where(z[:, 0].abs() >= z[:, 1].abs(), z[:, 0], z[:, 1])
    torch.testing.assert_close(detector.deviations(norms), expected, rtol=1e-3, atol=1e-3)


def test_evaluate_compares_score_files_and_inputs(data, tmp_path):
    for name in ("normal", "mnist"):
        for suffix in ("jsonl", "parquet"):
            out = tmp_path / f"{name}.{suffix}"
            assert run("score", data / name, "--detector", "energy", "--out", out).exit_code == 0
    of_files = run(
        "evaluate", "--normal", tmp_path / "normal.jsonl", "--anomalous",
        tmp_path / "mnist.parquet", "--json",
    )  # fmt: skip
    of_inputs = run(
        "evaluate", "--normal", data / "normal", "--anomalous", data / "mnist", "--anomalous",
        data / "train", "--detector", "energy", "--out", tmp_path / "metrics.json",
    )  # fmt: skip
    assert of_files.exit_code == of_inputs.exit_code == 0, of_inputs.output
    energy = gradood.Energy(embedded_classifier())
    expected = gradood.evaluate(
        *(energy.score((embedded_images(n)[:40] * 255).round() / 255)
          for n in ("fashion-mnist", "mnist"))
    )  # fmt: skip
    (found,) = json.loads(of_files.stdout)["sets"].values()
    assert found == pytest.approx(expected.asdict(), abs=1e-6)
    sets = json.loads((tmp_path / "metrics.json").read_text())["sets"]
    assert list(sets.values())[0] == pytest.approx(expected.asdict(), abs=1e-6)
    assert "mean" in of_inputs.output and "AUROC" in of_inputs.output


def test_skipped_inputs_are_reported_and_counted(data, tmp_path):
    mixed = shutil.copytree(data / "mnist", tmp_path / "mixed")
    (mixed / "00007.png").write_bytes(b"no picture")
    out = tmp_path / "scores.jsonl"
    failed = run("score", mixed, "--out", out)
    assert failed.exit_code == 2 and "00007.png" in failed.output
    result = run("score", mixed, "--out", out, "--on-error", "skip", "--resume")
    assert result.exit_code == 3 and "skipped 00007.png" in result.output
    (wrong,) = (row for row in rows(out) if row["error"])
    assert wrong["id"] == "00007.png" and wrong["score"] is None
    assert len(rows(out)) == 40
    again = run("score", mixed, "--out", out, "--resume")
    assert again.exit_code == 3 and "complete" in again.output
    metrics = run("evaluate", "--normal", out, "--anomalous", out, "--json")
    assert json.loads(metrics.stdout)["skipped"] == 2


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-4), ("bfloat16", 0.2)])
def test_precision(data, tmp_path, dtype, tolerance):
    run("score", data / "mnist", "--detector", "energy", "--out", tmp_path / "a.jsonl")
    options = ("--detector", "energy", "--out", tmp_path / "b.jsonl", "--dtype", dtype)
    assert run("score", data / "mnist", *options).exit_code == 0
    a, b = (np.array([r["score"] for r in rows(tmp_path / f"{n}.jsonl")]) for n in "ab")
    assert np.abs(a - b).max() < tolerance * np.abs(a).max() and not (a == b).all()


@pytest.mark.slow
def test_compile_serves_scores_of_logits_alone(data, tmp_path):
    run("score", data / "mnist", "--detector", "energy", "--out", tmp_path / "a.jsonl")
    options = ("--detector", "energy", "--out", tmp_path / "b.jsonl", "--compile")
    assert run("score", data / "mnist", *options).exit_code == 0
    a, b = ([r["score"] for r in rows(tmp_path / f"{n}.jsonl")] for n in "ab")
    assert a == pytest.approx(b, rel=1e-4)
    options = ("--detector", data / "detector", "--out", tmp_path / "c.jsonl", "--compile")
    hidden = run("score", data / "mnist", *options)
    assert hidden.exit_code == 2 and "--compile" in hidden.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("score", "missing"), "does not exist"),
        (("score", "{data}/mnist", "--detector", "gradient-knn"), "must be fitted"),
        (("score", "{data}/mnist", "--detector", "missing"), "cannot read"),
        (("score", "{data}/mnist", "--batch-size", "many"), "--batch-size"),
        (("score", "{data}/mnist", "--batch-size", "0"), "at least 1"),
        (("score", "{data}/mnist", "--out", "{data}/detector/x.jsonl"), "cannot write"),
        (("fit", "{data}/mnist", "--detector", "magic"), "expected one of"),
        (("fit", "{data}/mnist", "--detector", "gradient:magic"), "fast, adversarial"),
        (("fit", "{data}/mnist", "--detector", "energy:fast"), "expected one of"),
        (("fit", "{data}/mnist", "--detector", "gradient:best"), 'take "forward"'),
        (("score", "{data}/mnist", "--detector", "gradient:fast"), "must be fitted"),
        (("fit", "{data}/mnist", "--detector", "confounding"), "--anomalous"),
        (("fit", "{data}/mnist", "--fpr", "0.01"), "too few"),
        (("fit", "{data}/mnist", "--fpr", "2"), "--fpr"),
        (("evaluate", "--normal", "{data}/mnist", "--anomalous", "x.jsonl"), "--detector"),
        (("evaluate", "--normal", "x.jsonl", "--anomalous", "x.jsonl"), "cannot read scores"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_mistakes_get_a_sentence(data, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(*(part.format(data=data) for part in arguments))
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "every fifth of INPUTS sets it: give 91 inputs, or 19 others as --calibrate"),
        (("--fpr", 0.001, "--calibrate"), "40 inputs are too few to set a threshold"),
    ],
)
def test_too_few_inputs_for_a_threshold_are_said_before_the_work(
    data, tmp_path, arguments, message
):
    arguments = (*arguments, data / "mnist") if "--calibrate" in arguments else arguments
    out = tmp_path / "d.safetensors"
    result = run("fit", data / "mnist", "--detector", "gradient-knn", "--out", out, *arguments)
    assert result.exit_code == 2 and message in " ".join(result.output.split())
    assert "fitting" not in result.output and not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_graphs_need_a_gpu(data, tmp_path):
    made = run("score", data / "normal", "--cuda-graph", "--out", tmp_path / "s.jsonl")
    assert made.exit_code == 2 and "--cuda-graph needs a GPU; the model is on cpu" in made.output
