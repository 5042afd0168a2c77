"""Detectors as files."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gradood.data import ResNet
from gradood.detectors import Energy, GradientKNN, GradientMahalanobis, load
from gradood.errors import CheckpointError, InputError


def test_round_trip_is_bit_equal(detector, model, norms, tmp_path):
    path = tmp_path / "detector.safetensors"
    detector.calibrate(norms["normal"], fpr=0.1).save(path)
    loaded = load(path, model)
    assert type(loaded) is type(detector)
    assert loaded.threshold == detector.threshold
    for name in ("normal", "anomalous"):
        assert torch.equal(loaded.score(norms[name]), detector.score(norms[name]))
        assert torch.equal(loaded.predict(norms[name]), detector.predict(norms[name]))


def test_settings_come_back(model, pictures, tmp_path):
    label = torch.tensor([1.0] * 5 + [0.0] * 5)
    detector = GradientKNN(
        model,
        neighbours=3,
        label=["zero_hot", label],
        loss="ce",
        parameters=lambda name, parameter: name.startswith("stage1"),
        nan_policy="flag",
        batch_size=32,
    )
    with pytest.raises(InputError):  # "zero_hot" has no normalised form
        detector.fit(pictures.fit[:40])
    detector.label = ["all_hot", label]
    detector.fit(pictures.fit[:40]).save(tmp_path / "d")
    loaded = load(tmp_path / "d", model)
    assert (loaded.neighbours, loaded.loss, loaded.nan_policy, loaded.batch_size) == (
        3,
        "ce",
        "flag",
        32,
    )
    assert loaded.label[0] == "all_hot" and torch.equal(loaded.label[1], label)
    assert all(name.startswith("stage1") for name in loaded.parameters)
    x = pictures.normal[:10]
    assert torch.equal(loaded.score(x), detector.score(x))


def test_no_threshold_before_calibrate_survives_saving(fitted, model, tmp_path):
    fitted(GradientKNN).save(tmp_path / "d")
    assert load(tmp_path / "d", model)._threshold is None


@pytest.mark.parametrize("name", ["stage1.0.conv1.weight", "norm.running_mean"])
def test_other_weights_of_the_same_network_are_refused(fitted, model, tmp_path, name):
    """Retrained, its scores would mean nothing, and look as if they did."""
    fitted(Energy).save(tmp_path / "d")
    other = copy.deepcopy(model)
    load(tmp_path / "d", other)
    other.state_dict()[name].mul_(1.05)
    with pytest.raises(CheckpointError, match=f"other weights: 1 of .*{name}"):
        load(tmp_path / "d", other)


def test_weights_in_another_dtype_are_the_same(fitted, model, tmp_path):
    fitted(Energy).save(tmp_path / "d")
    load(tmp_path / "d", copy.deepcopy(model).bfloat16())
    load(tmp_path / "d", copy.deepcopy(model).double())


def test_a_compiled_network_is_the_same(fitted, model, tmp_path):
    fitted(Energy).save(tmp_path / "d")
    assert type(load(tmp_path / "d", torch.compile(model))) is Energy


def test_header_is_json_and_names_every_parameter(fitted, model, tmp_path):
    fitted(GradientMahalanobis).save(tmp_path / "d")
    with safe_open(tmp_path / "d", framework="pt") as file:
        header = json.loads(file.metadata()["gradood"])
    assert header["class"] == "GradientMahalanobis"
    assert header["settings"]["label"] == "all_hot" and header["settings"]["loss"] == "bce"
    assert header["model"] == {n: list(p.shape) for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ResNet(8, 8), r"conv\.weight is \[8, 1, 3, 3\], in the file \[16, 1, 3, 3\]"),
        (ResNet(14, 16), r"stage1\.1\.conv1\.weight is not in the file"),
        (torch.nn.Linear(3, 2), r"conv\.weight is missing.*more"),
    ],
    ids=["width", "depth", "other"],
)
def test_another_architecture_is_named(other, message, detector, tmp_path):
    detector.save(tmp_path / "d")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "d", other.eval())


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _garbage(path):
    path.write_bytes(b"\x80\x04 this is a pickle, or is it")


def _change(path, edit):
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["gradood"])
    tensors = load_file(path)
    edit(header, tensors)
    save_file(tensors, path, metadata={"gradood": json.dumps(header)})


DAMAGES = {
    "truncated": (_truncate, "cannot read"),
    "garbage": (_garbage, "cannot read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot read"),
    "missing": (lambda path: path.unlink(), "cannot read"),
    "safetensors of something else": (
        lambda path: save_file({"w": torch.ones(2)}, path),
        "not a detector",
    ),
    "tensor missing": (lambda path: _change(path, lambda h, t: t.pop("bank")), "damaged.*bank"),
    "unknown class": (
        lambda path: _change(path, lambda h, t: h.update({"class": "os.system"})),
        "os.system.*GradientKNN",
    ),
    "abstract class": (
        lambda path: _change(path, lambda h, t: h.update({"class": "NormDetector"})),
        "NormDetector",
    ),
    "later format": (lambda path: _change(path, lambda h, t: h.update(format=99)), "format 99"),
    "unknown setting": (
        lambda path: _change(path, lambda h, t: h["settings"].update(colour="red")),
        "not a detector",
    ),
    "bad setting": (
        lambda path: _change(path, lambda h, t: h["settings"].update(neighbours=0)),
        "neighbours",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_a_checkpoint_error(damage, message, fitted, model, tmp_path):
    path = tmp_path / "d"
    fitted(GradientKNN).save(path)
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        load(path, model)


def test_loaded_detector_refuses_norms_of_other_parameters(fitted, model, norms, tmp_path):
    fitted(GradientKNN).save(tmp_path / "d")
    wrong = norms["normal"]
    wrong = type(wrong)(wrong.values, tuple(reversed(wrong.names)), wrong.logits)
    with pytest.raises(InputError, match="parameters"):
        load(tmp_path / "d", model).score(wrong)


def test_what_cannot_be_saved_leaves_the_old_file(fitted, tmp_path):
    path = tmp_path / "d"
    fitted(Energy).save(path)
    before = path.read_bytes()
    detector = fitted(GradientKNN)
    detector.label = object()
    with pytest.raises(InputError, match="cannot be saved"):
        detector.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["d"]
