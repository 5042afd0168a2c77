"""gradood fit, score and evaluate, on real pictures, whatever interrupts them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import gradood
from gradood.cli import app
from gradood.data import embedded_classifier, embedded_images
from tests.pictures import write_pictures

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of pictures, and a detector fitted on one of them by the command."""
    root = tmp_path_factory.mktemp("data")
    write_pictures(root / "train", "fashion-mnist-train", 150)
    write_pictures(root / "normal", "fashion-mnist", 40)
    write_pictures(root / "mnist", "mnist", 40)
    made = run("fit", root / "train", "--out", root / "detector", "--json")
    assert made.exit_code == 0, made.output
    return root


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


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


def test_a_run_goes_on_only_under_its_own_settings(data, tmp_path):
    out = tmp_path / "scores.jsonl"
    command = ("score", data / "mnist", "--detector", data / "detector", "--out", out)
    interrupted(command, batches=1)
    assert run(*command).exit_code == 2  # would throw the rows away
    other = run(*command, "--resume", "--layers", 1)
    assert other.exit_code == 2 and "layers was 3, now 1" in " ".join(other.output.split())
    assert run(*command, "--resume").exit_code == 2  # another batch size
    assert run(*command, "--resume", "--batch-size", 8).exit_code == 0
    whole = tmp_path / "whole.jsonl"
    run(*command[:-1], whole, "--batch-size", 8)
    assert out.read_bytes() == whole.read_bytes()


def interrupted(command, batches):
    """Run until so many batches are written."""
    from gradood.scoring.output import ScoreFile

    class Stop(BaseException):
        pass

    def append(self, *arguments, original=ScoreFile.append):
        original(self, *arguments)
        append.left -= 1
        if not append.left:
            raise Stop

    append.left = batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoreFile, "append", append)
        with pytest.raises(Stop):
            RUNNER.invoke(app, [*map(str, command), "--batch-size", "8"], catch_exceptions=False)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_that_the_state_does_not_count_are_written_once(data, tmp_path, suffix):
    out, whole = tmp_path / f"scores.{suffix}", tmp_path / f"whole.{suffix}"
    command = ("score", data / "mnist", "--detector", "energy", "--batch-size", 8)
    run(*command, "--out", whole)
    interrupted(("score", data / "mnist", "--detector", "energy", "--out", out), batches=2)
    with open(tmp_path / f"scores.{suffix}.partial", "a") as partial:
        partial.write('{"id": "00016.png", "sco')  # killed in the middle of a row
    assert run(*command, "--out", out, "--resume").exit_code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_run_that_scored_nothing_leaves_nothing(data, tmp_path):
    out = tmp_path / "scores.jsonl"
    assert run("score", data / "mnist", "--out", out, "--detector", "missing").exit_code == 2
    assert not list(tmp_path.iterdir())
    assert run("score", data / "mnist", "--out", out).exit_code == 0


def test_a_run_that_scored_nothing_leaves_an_old_result_and_is_begun_again(data, tmp_path):
    out = tmp_path / "scores.jsonl"
    out.write_text("old\n")
    assert run("score", data / "mnist", "--out", out, "--detector", "missing").exit_code == 2
    assert out.read_text() == "old\n"
    assert run("score", data / "mnist", "--out", out, "--resume").exit_code == 0
    assert len(rows(out)) == 40


def test_an_old_result_is_replaced_and_not_taken_for_a_new_one(data, tmp_path):
    out = tmp_path / "scores.jsonl"
    out.write_text("old\n")
    interrupted(("score", data / "mnist", "--out", out), batches=1)
    assert out.read_text() == "old\n"
    assert run("score", data / "mnist", "--out", out, "--resume", "--batch-size", 8).exit_code == 0
    assert len(rows(out)) == 40


def test_batches_shrink_when_memory_runs_out(data, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "scores.jsonl"
    run("score", data / "mnist", "--detector", "energy", "--out", whole)
    score = gradood.Energy.score

    def limited(self, x):
        # What the allocator does with more than 5 pictures' worth of memory.
        return score(self, x) if len(x) <= 5 else torch.empty(1 << 60)

    monkeypatch.setattr(gradood.Energy, "score", limited)
    result = run("score", data / "mnist", "--detector", "energy", "--out", out)
    assert result.exit_code == 0, result.output
    assert "going on with 5" in result.output
    assert [row["score"] for row in rows(out)] == pytest.approx(
        [row["score"] for row in rows(whole)], rel=1e-5
    )


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


def test_ctrl_c_says_how_to_go_on(data, tmp_path, monkeypatch):
    from gradood.scoring.scores import Scorer

    def interrupt(self, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(Scorer, "lines", interrupt)
    result = run("score", data / "mnist", "--out", tmp_path / "scores.jsonl")
    assert result.exit_code == 130 and "--resume" in result.output


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_ten_kills_change_nothing(data, tmp_path, suffix):
    """Ten times kill -9, then --resume: the file of an undisturbed run, byte for byte."""
    many = tmp_path / "many"
    many.mkdir()
    for i in range(2000):
        shutil.copy(data / "mnist" / f"{i % 40:05}.png", many / f"{i:05}.png")
    (many / "01234.png").write_bytes(b"no picture")
    command = [
        sys.executable, "-m", "gradood", "score", str(many), "--detector", str(data / "detector"),
        "--batch-size", "32", "--on-error", "skip",
    ]  # fmt: skip
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"scores.{suffix}"
    begin = time.monotonic()
    assert subprocess.run([*command, "--out", str(whole)], timeout=600).returncode == 3
    seconds = time.monotonic() - begin
    generator = np.random.default_rng(0)
    state = out.with_name(out.name + ".state")
    kills = 0
    for _ in range(60):
        before = json.loads(state.read_text())["bytes"] if state.exists() else 0
        process = subprocess.Popen([*command, "--out", str(out), "--resume"])
        # From when it has begun to write; the start takes most of the time otherwise.
        while process.poll() is None and (
            not state.exists() or json.loads(state.read_text())["bytes"] == before
        ):
            time.sleep(0.002)
        time.sleep(generator.random() * seconds / 25)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        if kills == 10 or out.exists():
            break
    assert kills == 10
    final = subprocess.run([*command, "--out", str(out), "--resume"], timeout=600)
    assert final.returncode == 3
    assert out.read_bytes() == whole.read_bytes()


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
