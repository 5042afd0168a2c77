"""Detectors as files."""

import copy
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import gradood
from gradood.data import ResNet
from gradood.detectors import Energy, GradientKNN, GradientMahalanobis, load
from gradood.detectors.checkpoint import decode, encode, own_names
from gradood.errors import CheckpointError, InputError
from tests.detectors.saved.networks import inputs, network

SAVED = Path(__file__).parent / "saved"


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
        (ResNet(8, width=8), r"conv\.weight is \[8, 1, 3, 3\], in the file \[16, 1, 3, 3\]"),
        (ResNet(14, width=16), r"stage1\.1\.conv1\.weight is not in the file"),
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


DTYPES = [
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.bool),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_settings_of_every_dtype_come_back(dtype):
    value = torch.tensor([[1, 0, 1], [0, 1, 0]]).to(dtype)
    again = decode(json.loads(json.dumps(encode([value, "all_hot", 3]))))
    assert again[0].dtype == dtype and again[1:] == ["all_hot", 3]
    assert torch.equal(again[0].double(), value.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int32, torch.uint8], ids=str)
def test_labels_of_every_dtype_are_saved(dtype, model, pictures, tmp_path):
    label = torch.tensor([1, 0] * 5, dtype=dtype)
    detector = GradientKNN(model, label=label).fit(pictures.fit[:40])
    detector.save(tmp_path / "d")
    x = pictures.normal[:4]
    assert torch.equal(load(tmp_path / "d", model).score(x), detector.score(x))


def test_settings_of_an_unknown_dtype_are_named():
    with pytest.raises(CheckpointError, match="torch.float3"):
        decode({"tensor": [1], "dtype": "torch.float3"})


class Tabular(nn.Module):
    """Layers with names of columns, one of which matches another as a pattern."""

    def __init__(self, names=("income[USD]", "incomeU", "rate*", "what?", "what1", "[!a]")):
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.Linear(3, 2) for name in names})

    def forward(self, x):
        return sum(part(x) for part in self.parts.values())


@pytest.mark.parametrize("name", ["income[USD]", "rate*", "what?", "[!a]"])
def test_names_are_no_patterns(name, tmp_path):
    model, x = Tabular().eval(), torch.rand(60, 3, generator=torch.manual_seed(0))
    chosen = [f"parts.{name}.weight"]
    assert gradood.gradient_norms(model, x, parameters=chosen).names == tuple(chosen)
    for parameters in (None, chosen):
        detector = GradientKNN(model, parameters=parameters).fit(x)
        detector.save(tmp_path / "d")
        loaded = load(tmp_path / "d", model)
        torch.testing.assert_close(loaded.score(x[:3]), detector.score(x[:3]))


def _parallel(model):
    return nn.DataParallel(model)


def _compiled_inside(model):
    model[0] = torch.compile(model[0])
    return model


WRAPPED = {
    "plain": lambda model: model,
    "parallel": _parallel,
    "compiled": torch.compile,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "parallel and compiled": lambda model: torch.compile(_parallel(model)),
}


@pytest.mark.parametrize("there", WRAPPED)
@pytest.mark.parametrize("here", WRAPPED)
def test_wrapped_models_are_the_same(here, there, tmp_path):
    """Detectors that read logits: which wrappers gradient norms see through is theirs to say."""
    x = inputs(8, 0.3)
    detector = Energy(WRAPPED[there](network()).eval()).calibrate(inputs(40), fpr=0.1)
    detector.save(tmp_path / "d")
    loaded = load(tmp_path / "d", WRAPPED[here](network()).eval())
    torch.testing.assert_close(loaded.score(x), detector.score(x))


def test_a_detector_fitted_under_a_wrapper_serves_the_plain_model(tmp_path):
    names = own_names(nn.DataParallel(network()))
    assert list(names.values()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    compiled = _compiled_inside(network())
    assert list(own_names(compiled).values()) == list(names.values())
    detector = GradientKNN(nn.DataParallel(network()).eval()).fit(inputs(60))
    detector.save(tmp_path / "d")
    loaded = load(tmp_path / "d", network())
    torch.testing.assert_close(loaded.score(inputs(5, 0.3)), detector.score(inputs(5, 0.3)))


def test_a_child_called_module_is_no_wrapper(tmp_path):
    model = nn.Sequential()
    model.add_module("module", network())
    Energy(model.eval()).save(tmp_path / "d")
    with pytest.raises(CheckpointError, match="other parameters"):
        load(tmp_path / "d", network())
    load(tmp_path / "d", model)


@pytest.mark.parametrize("name, kind", [("knn", GradientKNN), ("energy", Energy)])
def test_files_of_older_versions_load(name, kind):
    expected = {
        "knn": ([4.742664, 7.131035, 9.081169, 4.190781, 7.396161], 4.572605),
        "energy": ([-4.745627, -5.830748, -5.463553, -4.511766, -6.045359], -2.646777),
    }[name]
    detector = load(SAVED / f"format-1-{name}.safetensors", network())
    assert type(detector) is kind
    assert detector.score(inputs(5, 0.3)).tolist() == pytest.approx(expected[0], rel=1e-4)
    assert detector.threshold == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_the_mode_is_that_of_the_umask(mask, fitted, tmp_path):
    before = os.umask(mask)
    try:
        fitted(Energy).save(tmp_path / "d")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o666 & ~mask


@pytest.mark.skipif("GRADOOD_OTHER_PYTHON" not in os.environ, reason=(
    "GRADOOD_OTHER_PYTHON names no interpreter with another PyTorch"
))  # fmt: skip
def test_detectors_cross_from_one_torch_to_another(tmp_path):
    """Saved here and read there, and the other way round."""
    root = Path(__file__).parents[2]
    pythons = (sys.executable, os.environ["GRADOOD_OTHER_PYTHON"])
    environment = {**os.environ, "PYTHONPATH": str(root)}
    found = []
    for number, (writer, reader) in enumerate((pythons, pythons[::-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        for python, action in ((writer, "save"), (reader, "check")):
            done = subprocess.run(
                [python, "-m", "tests.detectors.saved.exchange", action, str(folder)],
                cwd=root, env=environment, capture_output=True, text=True, timeout=200,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0]["torch"] != found[1]["torch"]
    assert all(one["read"] == 5 and one["worst"] < 1e-3 for one in found), found


@pytest.mark.parametrize("kind", [GradientKNN, GradientMahalanobis, gradood.GradientDetector])
def test_what_was_learned_lies_in_memory_as_in_a_file(kind, model, pictures, tmp_path):
    """Else products take another path, and the last bit of a score is another after loading."""
    detector = kind(model).fit(pictures.fit)
    assert all(learned.is_contiguous() for learned in detector.state.values())
    detector.save(tmp_path / "d.safetensors")
    loaded = load(tmp_path / "d.safetensors", model)
    assert torch.equal(loaded.score(pictures.normal), detector.score(pictures.normal))
