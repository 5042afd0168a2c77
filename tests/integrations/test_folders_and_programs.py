"""Folders of transformers and programs of torch.export, with what their authors put into them."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import gradood
from gradood.errors import InputError
from gradood.gradients import gradient_norms
from gradood.scoring.models import load_model

transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 16}


def deit(kind, tmp_path):
    torch.manual_seed(0)
    config = transformers.DeiTConfig(**SMALL, image_size=32, patch_size=16, num_labels=3)
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(tmp_path)
    return model


USUAL, TAUGHT = "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"


@pytest.mark.parametrize("kind,named", [(USUAL, True), (TAUGHT, True), (USUAL, False)])
def test_a_folder_s_own_class_is_made_or_the_usual_one(kind, named, tmp_path):
    model = deit(kind, tmp_path)
    if not named:  # as folders of older versions are
        config = json.loads((tmp_path / "config.json").read_text())
        del config["architectures"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(f"transformers:{tmp_path}").model
    x = torch.rand(2, 3, 32, 32)
    assert type(loaded.model).__name__ == kind
    torch.testing.assert_close(loaded(x), model(x).logits)
    assert gradient_norms(loaded, x).values.isfinite().all()


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).random((40, 60, 3)) * 255
    return Image.fromarray(pixels.astype(np.uint8))


def prepared(folder, picture):
    right = transformers.AutoImageProcessor.from_pretrained(folder)
    return right(images=picture, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("nested", [False, True])
def test_pictures_are_prepared_as_either_file_says(nested, tmp_path, picture):
    deit("DeiTForImageClassification", tmp_path)
    size = {"height": 32, "width": 32}
    processor = transformers.ViTImageProcessor(size=size, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    if nested:  # as processors of several kinds of input write it
        written = tmp_path / "preprocessor_config.json"
        inner = json.loads(written.read_text())
        outer = {"image_processor": inner, "processor_class": "CLIPProcessor"}
        (tmp_path / "processor_config.json").write_text(json.dumps(outer))
        written.unlink()
    found = load_model(f"transformers:{tmp_path}").transform(picture)
    torch.testing.assert_close(found, prepared(tmp_path, picture))
    assert found.min() < -0.1  # normalised


@pytest.mark.parametrize(
    "content", [{"processor_class": "BertProcessor"}, {"feature_extractor_type": "Wav2Vec2"}, [1]]
)
def test_what_says_nothing_of_pictures_leaves_them_alone(content, tmp_path, picture):
    deit("DeiTForImageClassification", tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    assert load_model(f"transformers:{tmp_path}").transform(picture).shape == (3, 40, 60)


def test_preprocessing_that_cannot_be_had_is_not_left_out(tmp_path, picture):
    deit("DeiTForImageClassification", tmp_path)
    content = {"image_processor_type": "OfNextYearsImageProcessor", "size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    loaded = load_model(f"transformers:{tmp_path}")
    with pytest.raises(InputError, match="--preprocess"):
        loaded.transform(picture)
    given = load_model(f"transformers:{tmp_path}", preprocess='{"input_size": [3, 32, 32]}')
    assert given.transform(picture).shape == (3, 32, 32)


def saved(path, model, args, kwargs, shapes):
    torch.export.save(torch.export.export(model, args, kwargs, dynamic_shapes=shapes), path)
    return load_model(str(path), trust=True).model


@pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("by_name", [False, True])
def test_a_program_with_one_input_takes_it_by_place(by_name, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)).eval()
    x, batch = torch.rand(3, 4), {0: torch.export.Dim("batch")}
    if by_name:
        program = saved(tmp_path / "m.pt2", model, (), {"input": x}, {"input": batch})
    else:
        program = saved(tmp_path / "m.pt2", model, (x,), {}, (batch,))
    rows = torch.rand(7, 4)
    torch.testing.assert_close(program(rows), model(rows))
    expected = gradient_norms(model, rows).values
    torch.testing.assert_close(gradient_norms(program, rows).values, expected)
    torch.testing.assert_close(
        gradood.Energy(program).score(rows), gradood.Energy(model).score(rows)
    )
