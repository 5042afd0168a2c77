"""Certificates on paper can be checked, and altered ones are found out."""

import contextlib
import json

import numpy as np
import pytest
import torch

import gradood
from gradood.errors import CheckpointError, InputError
from gradood.smoothing import read_records, verify, verify_with_model
from gradood.smoothing.evidence import encode
from gradood.smoothing.verification import _CERTIFICATE_FROM as EVALUATE

SMOOTHING = gradood.Smoothing(sigma=0.5, n=200, n0=32, seed=0)


def classes(x):
    return torch.stack([-x[:, 0], x[:, 0], x[:, 1]], 1)


def first(z):
    return z[:, 0]


def share(z):
    return z[:, 0].sigmoid()


SCORES = {"mean": share, "quantile": first, "decision": first, "decision, largest": first}
MADE = {
    "class": lambda x: gradood.certify_class(classes, x, settings=SMOOTHING),
    "class, sequential": lambda x: gradood.certify_class(
        classes, x, settings=SMOOTHING, radius=0.2
    ),
    "mean": lambda x: gradood.certify_mean(share, x, settings=SMOOTHING, radius=[0, 1.0]),
    "quantile": lambda x: gradood.certify_quantile(first, x, settings=SMOOTHING, radius=[0.1, 3.0]),
    "decision": lambda x: gradood.certify_decision(
        first, x, settings=SMOOTHING, threshold=0.0, radius=0.2
    ),
    "decision, largest": lambda x: gradood.certify_decision(
        first, x, settings=SMOOTHING, threshold=0.0
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
    made = gradood.certify_class(half_space, x, settings=SMOOTHING, radius=0.2, ids=[7, 3])
    records = json.loads(json.dumps(made.evidence.records()))
    assert verify_with_model(records, half_space, x) == [None, None]
    with torch.no_grad():
        half_space.normal.mul_(-1)
    assert all("another model" in found for found in verify_with_model(records, half_space, x))


def test_other_inputs_do_not_pass(points, half_space):
    made = gradood.certify_class(half_space, points(1.0, 0.3), settings=SMOOTHING)
    records = made.evidence.records()
    found = verify_with_model(records, half_space, points(1.0, -0.3))
    assert found[0] is None and "drawn again" in found[1]
    with pytest.raises(InputError, match="2 certificates for 1"):
        verify_with_model(records, half_space, points(1.0))


def test_every_kind_can_be_drawn_again(classifier, pictures):
    smoothing = gradood.Smoothing(sigma=0.02, n=32, n0=16)
    energy = gradood.Energy(classifier)
    for made in (
        gradood.certify_quantile(energy, pictures[:1], settings=smoothing, radius=[0.0, 0.01]),
        gradood.certify_decision(
            energy, pictures[:1], settings=smoothing, threshold=-3.0, radius=0.01
        ),
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


FORGERIES = {
    "sigma": lambda r: (r["settings"].update(sigma=50.0), scale(r, 100)),
    "slack": lambda r: r.update(slack=0.0),
    "magnitude": lambda r: r.update(magnitude=0.0, slack=slack_of(r, 0.0)),
    "alpha": lambda r: r["settings"].update(alpha=0.5),
    "seed": lambda r: r["settings"].update(seed=5),
    "id": lambda r: r.update(id=77),
    "n": lambda r: r["settings"].update(n=10**4),
    "dtype": lambda r: r["settings"].update(dtype="bfloat16"),
    "shape": lambda r: r.update(shape=[2, 2]),
    "model": lambda r: r.update(model="0" * 32),
    "samples": lambda r: r.update(samples=r["samples"] + 8),
    "pilot samples": lambda r: r.update(pilot_samples=1),
    "something new": lambda r: r.update(certified_by="nobody"),
}


def scale(record, by):
    for name in ("radius",):
        if name in record["result"]:
            record["result"][name] *= by


def slack_of(record, magnitude):
    from gradood.smoothing.rounding import slack

    return float(slack(record["settings"], record["shape"], magnitude))


@pytest.mark.parametrize("field", FORGERIES)
@pytest.mark.parametrize("kind", ["class", "quantile", "decision, largest"])
def test_a_forged_record_among_others_is_refused(points, kind, field):
    """What another record says of its settings proves nothing about this one's."""
    x = points(1.0, 0.3, -0.2)
    records = json.loads(json.dumps(encode(MADE[kind](x).evidence.records())))
    model = classes if "class" in kind else SCORES[kind]
    assert verify_with_model(records, model, x) == [None] * 3
    FORGERIES[field](records[1])
    if field in ("sigma", "slack", "magnitude", "seed"):  # so that it follows from what is written
        with contextlib.suppress(LookupError, ValueError):
            records[1]["result"] = encode(EVALUATE[records[1]["kind"]](records[1], records[1]))
    try:
        found = verify_with_model(records, model, x)
    except InputError:
        return
    assert found[0] is None and found[2] is None and found[1] is not None


def test_certificates_of_different_runs_are_checked_by_their_own_settings(points, half_space):
    x = points(1.0, 0.3)
    parts = [
        gradood.certify_class(half_space, x[i : i + 1], settings=gradood.Smoothing(sigma=s, n=100))
        for i, s in enumerate((0.5, 0.25))
    ]
    records = [record for part in parts for record in part.evidence.records()]
    assert records[0]["id"] == records[1]["id"] == 0
    assert verify_with_model(records, half_space, x) == [None, None]
    given = gradood.Smoothing(sigma=0.5, n=100)
    first, second = verify_with_model(records, half_space, x, settings=given)
    assert first is None and "sigma 0.25, those given 0.5" in second


def test_a_commitment_fixes_everything_before_the_seed(points, half_space):
    x, settings = points(1.0, 0.3), gradood.Smoothing(sigma=0.5, n=100)
    commitment = gradood.smoothing.commit("class", half_space, x, settings=settings, radius=0.2)
    opened = commitment.open("drawn by the auditor")
    assert opened == commitment.open("drawn by the auditor") != commitment.open("another")
    records = gradood.certify_class(half_space, x, settings=opened, radius=0.2).evidence.records()
    audit = {"challenge": "drawn by the auditor"}
    assert verify_with_model(records, half_space, x, **audit) == [None, None]
    assert all(verify_with_model(records, half_space, x, challenge="another"))
    # Other inputs, another claim or other settings would have had another seed.
    for change in (
        {"x": points(1.0, 0.31)}, {"radius": 0.21}, {"ids": [1, 2]},
        {"settings": gradood.Smoothing(sigma=0.5, n=101)}, {"model": classes},
    ):  # fmt: skip
        arguments = {"model": half_space, "x": x, "settings": settings, "radius": 0.2, **change}
        other = gradood.smoothing.commit("class", **arguments)
        assert other.open("drawn by the auditor").seed != opened.seed
    with pytest.raises(InputError, match="no threshold"):
        gradood.smoothing.commit("class", half_space, x, settings=settings, threshold=1.0)


def test_every_certification_draws_a_seed_of_its_own(points, half_space):
    x, settings = points(1.0), gradood.Smoothing(sigma=0.5, n=100)
    made = [gradood.certify_class(half_space, x, settings=settings) for _ in range(3)]
    seeds = {part.evidence.common["settings"]["seed"] for part in made}
    assert len(seeds) == 3 and None not in seeds and settings.seed is None


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor, np.array, int])
def test_settings_take_scalars_of_other_packages(points, half_space, kind):
    settings = gradood.Smoothing(
        sigma=kind(1), n=np.int64(100), alpha=np.float32(0.01), seed=np.int32(4)
    )
    records = gradood.certify_class(half_space, points(1.0), settings=settings).evidence.records()
    assert json.loads(json.dumps(records))[0]["settings"]["sigma"] == 1.0
    assert verify_with_model(records, half_space, points(1.0)) == [None]


@pytest.mark.parametrize("value", [True, "0.5", None, torch.tensor([0.1, 0.2]), 1j, float("nan")])
def test_settings_refuse_what_is_no_number(value):
    with pytest.raises(InputError, match="sigma"):
        gradood.Smoothing(sigma=value)


def test_a_record_that_cannot_be_drawn_spoils_no_other(points):
    def score(x):
        return x[:, 0]

    smoothing = gradood.Smoothing(sigma=0.5, n=64, n0=16, seed=3)
    x = points(0.1, 0.2, 0.3)
    honest = gradood.certify_quantile(score, x, settings=smoothing, radius=[0.0, 0.1]).evidence
    for key in ("target", "settings", "samples", "id"):
        for value in ("x", None, [], {}, -1, 2.5):
            records = [json.loads(line) for line in honest.lines().splitlines()]
            records[1][key] = value
            found = verify_with_model(records, score, x)
            assert found[0] is found[2] is None and found[1] is not None, (key, value)
    records[1] = {**records[0], "settings": {**records[0]["settings"], "tile": 7}}
    assert verify_with_model(records, score, x)[1] is not None
