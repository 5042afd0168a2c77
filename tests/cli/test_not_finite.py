"""What the model makes NaN or Inf of has no score: said by name, and by the exit status."""

import json
import math

import pytest
import torch
from torch import nn

from gradood.data import embedded_classifier, embedded_images
from gradood.data.preprocessing import Preprocessing
from tests.commands import run
from tests.pictures import write_pictures

COUNT, BRIGHT = 30, 0.3


class Breaks(nn.Module):
    """The embedded classifier, whose logits of bright pictures are not numbers."""

    def __init__(self, value):
        super().__init__()
        self.model, self.value = embedded_classifier(), value

    def forward(self, x):
        bright = x.flatten(1).mean(1, keepdim=True) > BRIGHT
        return self.model(x).masked_fill(bright, self.value)


def breaks_by_nan():
    return Breaks(math.nan).eval(), Preprocessing(input_size=(1, 28, 28))


def breaks_by_inf():
    return Breaks(math.inf).eval(), Preprocessing(input_size=(1, 28, 28))


MODELS = ("breaks_by_nan", "breaks_by_inf")
EVERY_MODEL = pytest.mark.parametrize("model", [f"{__name__}:{name}" for name in MODELS])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("bright") / "x", "fashion-mnist", COUNT)


def bright():
    x = (embedded_images("fashion-mnist")[:COUNT] * 255).round() / 255
    rows = (x.flatten(1).mean(1) > BRIGHT).nonzero().flatten().tolist()
    assert 0 < len(rows) < COUNT
    return rows


@EVERY_MODEL
@pytest.mark.parametrize("detector", ["max-softmax", "energy"])
def test_score_stops_at_the_first_or_skips_and_names_them(model, detector, pictures, tmp_path):
    out = tmp_path / "scores.jsonl"
    command = ("score", pictures, "--model", model, "--detector", detector, "--out", out)
    stopped = run(*command)
    assert stopped.exit_code == 2
    assert f"{bright()[0]:05}.png: its score is not finite" in stopped.output
    skipped = run(*command, "--on-error", "skip", "--resume")
    assert skipped.exit_code == 3
    assert f"{len(bright())} skipped" in skipped.output.replace(",", "")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [i for i, row in enumerate(rows) if row["error"]] == bright()
    assert all((row["score"] is None) == bool(row["error"]) for row in rows)
    assert all("not finite" in rows[i]["error"] for i in bright())


@EVERY_MODEL
def test_fit_leaves_them_out_or_stops(model, pictures, tmp_path):
    command = ("fit", pictures, "--model", model, "--detector", "gradient-knn", "--fpr", "0.4",
               "--out", tmp_path / "d")  # fmt: skip
    stopped = run(*command)
    assert stopped.exit_code == 2 and "its score is not finite" in stopped.output
    assert run(*command, "--on-error", "skip").exit_code == 0
    scored = run("score", pictures, "--model", model, "--detector", tmp_path / "d",
                 "--out", tmp_path / "scores.jsonl", "--on-error", "skip")  # fmt: skip
    assert scored.exit_code == 3
    assert f"{len(bright())} skipped" in scored.output


@EVERY_MODEL
def test_evaluate_stops_or_counts_them(model, pictures):
    command = ("evaluate", "--normal", pictures, "--anomalous", pictures, "--model", model,
               "--detector", "energy", "--json")  # fmt: skip
    assert run(*command).exit_code == 2
    found = run(*command, "--on-error", "skip")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["skipped"] == 2 * len(bright())


def test_scores_are_those_of_the_model_without_them(pictures, tmp_path):
    out = tmp_path / "scores.jsonl"
    run("score", pictures, "--model", f"{__name__}:breaks_by_nan", "--detector", "energy",
        "--out", out, "--on-error", "skip")  # fmt: skip
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    usable = [i for i in range(COUNT) if i not in bright()]
    x = (embedded_images("fashion-mnist")[:COUNT] * 255).round() / 255
    expected = -torch.logsumexp(embedded_classifier()(x[usable]).detach(), 1)
    found = torch.tensor([rows[i]["score"] for i in usable])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
