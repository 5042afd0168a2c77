"""Certificates on paper can be checked, and altered ones are found out."""

import json

import pytest
import torch

import gradood
from gradood.errors import CheckpointError, InputError
from gradood.smoothing import read_records, verify, verify_with_model

SMOOTHING = gradood.Smoothing(sigma=0.5, n=200, n0=32, seed=0)


def classes(x):
    return torch.stack([-x[:, 0], x[:, 0], x[:, 1]], 1)


MADE = {
    "class": lambda x: gradood.certify_class(classes, x, SMOOTHING),
    "class, sequential": lambda x: gradood.certify_class(classes, x, SMOOTHING, radius=0.2),
    "mean": lambda x: gradood.certify_mean(
        lambda z: z[:, 0].sigmoid(), x, SMOOTHING, radius=[0, 1.0]
    ),
    "quantile": lambda x: gradood.certify_quantile(
        lambda z: z[:, 0], x, SMOOTHING, radius=[0.1, 3.0]
    ),
    "decision": lambda x: gradood.certify_decision(
        lambda z: z[:, 0], x, SMOOTHING, threshold=0.0, radius=0.2
    ),
    "decision, largest": lambda x: gradood.certify_decision(
        lambda z: z[:, 0], x, SMOOTHING, threshold=0.0
    ),
}


@pytest.fixture(params=MADE)
def records(request, points, tmp_path):
    """What was written for two inputs, read again."""
    made = MADE[request.param](points(1.0, 0.3))
    made.evidence.write(tmp_path / "certificates.jsonl")
    found = read_records(tmp_path / "certificates.jsonl")
    assert len(found) == 2
    return found


def test_certificates_follow_from_what_is_written(records):
    assert [verify(record) for record in records] == [None, None]
    for record in records:
        assert record["settings"]["seed"] == 0 and record["settings"]["sigma"] == 0.5
        assert set(record["versions"]) == {"gradood", "torch", "numpy", "scipy"}


def test_altered_results_are_found(records):
    for name, value in records[0]["result"].items():
        altered = json.loads(json.dumps(records[0]))
        if isinstance(value, list):
            altered["result"][name][0] = 0.123
        else:
            altered["result"][name] = not value if isinstance(value, bool) else value + 1e-6
        assert name in verify(altered)


@pytest.mark.parametrize(
    "path, value",
    [
        (("samples",), 10_000),
        (("samples",), 100),
        (("counts", 0), -1),
        (("counts", 0), 10**6),
        (("settings", "alpha"), 1e-30),
        (("settings", "sigma"), 50.0),
        (("settings", "n"), 3),
        (("counts",), None),
        (("settings",), {}),
    ],
    ids=str,
)
def test_altered_evidence_is_found(records, path, value):
    altered = json.loads(json.dumps(records[0]))
    *parents, last = path
    place = altered
    for key in parents:
        place = place[key]
    place[last] = value
    assert verify(altered) is not None


def test_samples_can_be_drawn_again(points, half_space):
    x = points(1.0, 0.3)
    made = gradood.certify_class(half_space, x, SMOOTHING, radius=0.2, ids=[7, 3])
    records = json.loads(json.dumps(made.evidence.records()))
    assert verify_with_model(records, half_space, x) == [None, None]
    with torch.no_grad():
        half_space.normal.mul_(-1)
    assert all("another model" in found for found in verify_with_model(records, half_space, x))


def test_other_inputs_do_not_pass(points, half_space):
    made = gradood.certify_class(half_space, points(1.0, 0.3), SMOOTHING)
    records = made.evidence.records()
    found = verify_with_model(records, half_space, points(1.0, -0.3))
    assert found[0] is None and "drawn again" in found[1]
    with pytest.raises(InputError, match="2 certificates for 1"):
        verify_with_model(records, half_space, points(1.0))


def test_every_kind_can_be_drawn_again(classifier, pictures):
    smoothing = gradood.Smoothing(sigma=0.02, n=32, n0=16)
    energy = gradood.Energy(classifier)
    for made in (
        gradood.certify_quantile(energy, pictures[:1], smoothing, radius=[0.0, 0.01]),
        gradood.certify_decision(energy, pictures[:1], smoothing, threshold=-3.0, radius=0.01),
    ):
        records = json.loads(json.dumps(made.evidence.records()))
        assert verify_with_model(records, energy, pictures[:1]) == [None]


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "other"}', '{"kind": "class"}', '"x"'])
def test_files_that_hold_no_certificates_are_refused(tmp_path, text):
    path = tmp_path / "certificates.jsonl"
    path.write_text(text)
    with pytest.raises(CheckpointError):
        read_records(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_records(tmp_path / "missing.jsonl")
