"""One way to name a model, whoever wrote it, and nothing that its file asks for is executed."""

import os
import pickle
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import gradood
from gradood.data import embedded_classifier, embedded_images
from gradood.data.weights import load_weights, read_state_dict
from gradood.errors import CheckpointError, InputError, ModelError
from gradood.scoring.models import load_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*`torch.jit:FutureWarning", "ignore:.*`torch.jit:DeprecationWarning",
    "ignore:.*isinstance.*LeafSpec:FutureWarning",
)  # fmt: skip


class Executes:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.fixture(scope="module")
def classifier():
    return embedded_classifier()


@pytest.fixture(scope="module")
def inputs():
    return embedded_images("mnist")[:3]


def export(model, inputs, path, dynamic=True):
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(model, (inputs,), dynamic_shapes=shapes), path)
    return str(path)


@pytest.mark.slow
def test_an_exported_program_has_the_norms_of_its_model(tmp_path, classifier, inputs):
    path = export(classifier, inputs, tmp_path / "m.pt2")
    loaded = load_model(path, trust=True)
    expected = gradood.gradient_norms(classifier, inputs)
    found = gradood.gradient_norms(loaded.model, inputs)
    assert found.names == expected.names
    torch.testing.assert_close(found.values, expected.values)
    rules = {row.rule for row in gradood.explain(loaded.model, inputs)}
    assert rules == {row.rule for row in gradood.explain(classifier, inputs)}
    assert not any(row.fallback for row in gradood.explain(loaded.model, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "swin_t"])
def test_exported_models_of_torchvision_are_covered_by_rules(tmp_path, name):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(2, 3, 64, 64)
    loaded = load_model(export(model, x, tmp_path / "m.pt2"), trust=True)
    expected = gradood.gradient_norms(model, x)
    found = gradood.gradient_norms(loaded.model, x)
    assert found.names == expected.names
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-10)
    rows = gradood.explain(loaded.model, x)
    assert [row.parameter for row in rows if row.fallback] == [
        row.parameter for row in gradood.explain(model, x) if row.fallback
    ]


def test_torchscript_serves_logits_and_says_why_not_norms(tmp_path, classifier, inputs):
    from gradood.scoring.fitting import make_detector

    path = str(tmp_path / "m.pt")
    torch.jit.save(torch.jit.trace(classifier, inputs), path)
    loaded = load_model(path, trust=True)
    scores = make_detector("energy", loaded).score(inputs)
    torch.testing.assert_close(scores, gradood.Energy(classifier).score(inputs))
    with pytest.raises(ModelError, match=r"torch\.export\.save"):
        make_detector("gradient-knn", loaded)


@pytest.mark.slow
def test_a_program_is_not_loaded_unless_it_is_trusted(tmp_path, classifier, inputs):
    with pytest.raises(InputError, match="--trust"):
        load_model(export(classifier, inputs, tmp_path / "m.pt2"))


@pytest.mark.slow
def test_a_program_for_one_batch_size_is_refused(tmp_path, classifier, inputs):
    path = export(classifier, inputs, tmp_path / "m.pt2", dynamic=False)
    with pytest.raises(ModelError, match="batches of 3 alone.*dynamic_shapes"):
        load_model(path, trust=True)


@pytest.mark.slow
def test_a_program_exported_in_training_mode_is_refused(tmp_path, inputs):
    path = export(embedded_classifier().train(), inputs, tmp_path / "m.pt2")
    with pytest.raises(ModelError, match="training mode"):
        load_model(path, trust=True)


@pytest.mark.parametrize("save", [save_file, torch.save], ids=["safetensors", "torch.save"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_either_kind_fill_the_model(tmp_path, classifier, inputs, save, prefix):
    state = {prefix + name: t for name, t in classifier.state_dict().items()}
    path = tmp_path / "weights"
    save({"state_dict": state, "epoch": 3} if save is torch.save else state, path)
    model = embedded_classifier()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    load_weights(model, path)
    assert torch.equal(model(inputs), classifier(inputs))


def test_weights_that_do_not_fit_are_named(tmp_path, classifier):
    state = dict(classifier.state_dict())
    state["extra"] = torch.zeros(1)
    state["linear.bias"] = torch.zeros(3)
    del state["conv.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_weights(embedded_classifier(), tmp_path / "w.safetensors")
    for part in ("conv.weight is missing", "extra is not in", "linear.bias is [3], in the model"):
        assert part in str(error.value)


def hostile(tmp_path, mark):
    """Files that pose as weights; the first three run code where pickles are loaded."""
    evil = Executes(mark)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(evil))
    torch.save({"weight": evil}, tmp_path / "zip.pth")
    torch.save({"weight": evil}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    torch.save({}, tmp_path / "empty.pth")
    good = tmp_path / "good.pth"
    torch.save({"weight": torch.zeros(1000)}, good)
    (tmp_path / "truncated.pth").write_bytes(good.read_bytes()[:900])
    (tmp_path / "nothing.pth").write_bytes(b"")
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "length.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    (tmp_path / "folder").mkdir()
    good.unlink()
    return sorted(tmp_path.iterdir())


def test_files_that_pose_as_weights_are_refused_and_run_nothing(tmp_path):
    mark = tmp_path.with_name(tmp_path.name + "-mark")
    files = hostile(tmp_path, mark)
    assert len(files) == 13
    for path in (*files, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=path.name):
            read_state_dict(path)
        if path.is_file():
            with pytest.raises(InputError, match="no model|no program|--trust|cannot load"):
                load_model(str(path))
    assert not mark.exists()
    pickle.loads((tmp_path / "plain.pkl").read_bytes())
    assert mark.exists()  # the trap works


@pytest.mark.parametrize("family", ["timm:", ""])
def test_a_timm_name_needs_weights_and_brings_its_preprocessing(tmp_path, family):
    timm = pytest.importorskip("timm")
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(InputError, match="--weights"):
        load_model(family + "mobilenetv3_small_050")
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(
        family + "mobilenetv3_small_050", weights=tmp_path / "w.safetensors", classes=7
    )
    x = torch.stack([loaded.transform(image.new("L", (300, 250), c)) for c in (0, 90)])
    assert x.shape == (2, 3, 224, 224) and x.min() < -1
    assert torch.equal(loaded.model(x), model(x))
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        load_model("timm:mobilenetv3_small_050", weights=tmp_path / "w.safetensors")


def small_vit(transformers):
    return transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, num_labels=5,
    )  # fmt: skip


@pytest.mark.slow
def test_a_folder_of_transformers_brings_weights_and_preprocessing(tmp_path):
    transformers = pytest.importorskip("transformers")
    image = pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(small_vit(transformers)).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    loaded = load_model(f"transformers:{tmp_path}")
    x = torch.stack([loaded.transform(image.new("RGB", (50, 40), (c, 9, 99))) for c in (0, 200)])
    assert torch.equal(loaded.model(x), model(x).logits)
    norms = gradood.gradient_norms(loaded.model, x)
    assert norms.values.shape[0] == 2 and bool(norms.values.isfinite().all())
    assert load_model(str(tmp_path)).model(x).shape == (2, 5)  # a folder says what it is
    weights = tmp_path / "model.safetensors"
    given = load_model(f"transformers:{tmp_path}", weights=weights.rename(tmp_path / "w"))
    assert torch.equal(given.model(x), model(x).logits)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(f"transformers:{tmp_path}")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model("transformers:vit", weights=tmp_path / "w", classes=5)


def test_a_sequence_classifier_takes_tokens(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=3, architectures=["BertForSequenceClassification"],
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).eval().save_pretrained(tmp_path)
    loaded = load_model(f"transformers:{tmp_path}")
    tokens = torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(1))
    norms = gradood.gradient_norms(loaded.model, tokens)
    assert bool((norms.values >= 0).all()) and norms.logits.shape == (4, 3)


def test_a_function_may_bring_weights_and_preprocessing(tmp_path, monkeypatch):
    (tmp_path / "own_model.py").write_text(
        "import torch\n"
        "def build():\n    return torch.nn.Linear(4, 3).train(), lambda picture: torch.ones(4)\n"
        "module = torch.nn.Linear(4, 3)\nnumber = 3\n"
    )
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)  # modules of the current folder are found
    weights = {"weight": torch.ones(3, 4), "bias": torch.zeros(3)}
    save_file(weights, tmp_path / "w.safetensors")
    loaded = load_model("own_model:build", weights=tmp_path / "w.safetensors")
    assert not loaded.model.training
    assert loaded.model(loaded.transform(None)).tolist() == [4, 4, 4]
    assert load_model("own_model:module", dtype="float64").model.weight.dtype == torch.float64
    for wrong in ("own_model:number", "own_model:nothing", "nothing:here"):
        with pytest.raises((InputError, TypeError)):
            load_model(wrong)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "no_such_model"}, "names nothing"),
        ({"name": "timm:no_such_model", "weights": "x"}, "timm knows no model"),
        ({"name": "transformers:no_such_type", "weights": "x"}, "cannot make a classifier"),
        ({"weights": "x"}, "--weights cannot be used"),
        ({"classes": 3}, "--classes cannot be used"),
        ({"device": "nonsense"}, "--device nonsense"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_wrong_names_get_a_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        load_model(**arguments)
