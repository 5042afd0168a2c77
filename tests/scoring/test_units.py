"""sigma, radius and epsilon are in pixels, whichever way a model's standardisation came."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import gradood
from gradood.attacks import attack_score
from gradood.cli import app
from gradood.data.preprocessing import Preprocessing, Standardising
from gradood.errors import InputError
from gradood.scoring.models import LoadedModel
from gradood.scoring.units import in_pixels, standardisation

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def torchvision_compose():
    from torchvision import transforms as t

    return t.Compose([t.Resize(8), t.CenterCrop(8), t.ToTensor(), t.Normalize(MEAN, STD)])


def torchvision_v2():
    from torchvision.transforms import v2

    return v2.Compose(
        [v2.ToImage(), v2.Resize(8), v2.ToDtype(torch.float32, True), v2.Normalize(MEAN, STD)]
    )


def torchvision_preset():
    from torchvision.transforms._presets import ImageClassification

    return ImageClassification(crop_size=8, resize_size=8, mean=MEAN, std=STD)


KNOWN = {
    "ours": lambda: Preprocessing(input_size=(3, 8, 8), mean=MEAN, std=STD),
    "timm's or transformers'": lambda: Standardising(lambda image: image, MEAN, STD),
    "torchvision's": torchvision_compose,
    "torchvision's v2": torchvision_v2,
    "a preset of torchvision's": torchvision_preset,
}


@pytest.mark.parametrize("kind", KNOWN)
def test_the_standardisation_is_found(kind):
    mean, std = standardisation(KNOWN[kind]())
    assert mean.tolist() == pytest.approx(MEAN) and std.tolist() == pytest.approx(STD)


def test_what_cannot_be_taken_apart_is_refused():
    from torchvision import transforms as t

    for opaque in (
        lambda image: image,
        t.Compose([t.ToTensor(), t.Normalize(MEAN, STD), t.CenterCrop(8)]),
        t.Compose([t.ToTensor(), t.Lambda(lambda x: 255 * x)]),
        t.Compose([lambda image: image, t.Normalize(MEAN, STD)]),
    ):
        with pytest.raises(InputError, match="--units input"):
            standardisation(opaque)
    assert standardisation(t.Compose([t.Resize(8), t.ToTensor()]))[1].tolist() == [1.0]


def test_the_model_of_pixels_is_the_model_of_its_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    loaded = LoadedModel(model, KNOWN["ours"](), torch.device("cpu"), torch.float32)
    made, pixels = in_pixels(loaded)
    inputs = (torch.rand(4, 3, 8, 8) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    x = pixels(inputs)
    assert 0 <= x.min() and x.max() <= 1
    torch.testing.assert_close(made.model(x), model(inputs), rtol=1e-4, atol=1e-5)
    assert [n for n, _ in made.model.named_parameters()] == [n for n, _ in model.named_parameters()]
    torch.testing.assert_close(model(x), model(x))  # the original does not standardise
    assert not model._forward_pre_hooks
    with pytest.raises(InputError, match="not pixels"):
        pixels(inputs * 10)


@pytest.fixture
def standardised(tmp_path, monkeypatch):
    """A half-space 0.05 pixels from the input, by a model whose deviation is 0.2 pixels."""
    (tmp_path / "units_network.py").write_text(
        "import torch\n"
        "from gradood.data.preprocessing import Preprocessing\n"
        "class Border(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        side = x[:, 0, 0, 0] - (0.5 - 0.4) / 0.2\n"
        "        return torch.stack([-side, side], 1)\n"
        "def build():\n"
        "    return Border(), Preprocessing(input_size=(1, 4, 4), mean=0.4, std=0.2)\n"
        "def opaque():\n"
        "    return Border(), lambda image: torch.zeros(1, 4, 4)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pixels = np.full((2, 1, 4, 4), 0.55, np.float32)
    np.save(tmp_path / "x.npy", (pixels - 0.4) / 0.2)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_certified_radii_are_in_pixels(standardised):
    out, common = standardised / "c.jsonl", ("--sigma", 0.02, "--n", 2000)
    made = run(
        "certify", standardised / "x.npy", "--model", "units_network:build", *common, "--out", out
    )
    assert made.exit_code == 0, made.output
    for record in records(out):
        assert 0.03 < record["result"]["radius"] <= 0.05 and record["result"]["label"] == 1
        assert record["units"] == "pixels" and record["file"].startswith(
            str(standardised / "x.npy")
        )
    assert "pixels from 0 to 1" in made.output
    checked = run("certify", "--verify", out, "--again", standardised / "x.npy", "--model",
                  "units_network:build")  # fmt: skip
    assert checked.exit_code == 0, checked.output
    own = run("certify", standardised / "x.npy", "--model", "units_network:build", *common,
              "--units", "input", "--out", out)  # fmt: skip
    assert own.exit_code == 0 and "units of the model's input" in own.output
    assert all(r["units"] == "input" and r["result"]["radius"] > 0.05 for r in records(out))
    checked = run("certify", "--verify", out, "--again", standardised / "x.npy", "--model",
                  "units_network:build")  # fmt: skip
    assert checked.exit_code == 0, checked.output


def test_opaque_preprocessing_needs_a_word(standardised):
    arguments = ("certify", standardised / "x.npy", "--model", "units_network:opaque", "--n", 100,
                 "--out", standardised / "c.jsonl")  # fmt: skip
    refused = run(*arguments)
    assert refused.exit_code == 2 and "--units input" in refused.output
    assert run(*arguments, "--units", "input").exit_code == 0


def test_evaluate_attacks_and_guarantees_in_pixels(standardised):
    """The score of the border moves by 5 for every pixel; in units of the input, by 1."""
    for name, place in (("normal", 0.45), ("strange", 0.55)):
        pixels = np.full((12, 1, 4, 4), place, np.float32)
        pixels += np.linspace(-0.02, 0.02, 12, dtype=np.float32)[:, None, None, None]
        np.save(standardised / f"{name}.npy", (pixels - 0.4) / 0.2)
    common = ("evaluate", "--normal", standardised / "normal.npy", "--anomalous",
              standardised / "strange.npy", "--detector", "energy", "--model",
              "units_network:build", "--json", "--attack", "linf:0.03", "--steps", 5)  # fmt: skip
    found = {}
    for units in ("pixels", "input"):
        made = run(*common, "--units", units)
        assert made.exit_code == 0, made.output
        (found[units],) = json.loads(made.output)["sets"].values()
    gaps = {u: s["auroc"] - s["attacked linf:0.03"]["auroc"] for u, s in found.items()}
    assert SimpleNamespace(**gaps).pixels >= SimpleNamespace(**gaps).input


def test_epsilon_is_that_of_an_attack_on_the_model_of_pixels(standardised):
    """The command's figures are the library's, of a model that standardises by itself."""
    import units_network

    built = units_network.build()
    network = built[0] if isinstance(built, tuple) else built
    pixels = {}
    for name, place in (("normal", 0.42), ("strange", 0.47)):
        rows = (
            torch.full((20, 1, 4, 4), place) + torch.linspace(-0.04, 0.04, 20)[:, None, None, None]
        )
        np.save(standardised / f"{name}.npy", ((rows - 0.4) / 0.2).numpy())
        pixels[name] = rows

    class OfPixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network((x - 0.4) / 0.2)

    detector = gradood.Energy(OfPixels().eval())
    normal = detector.score(pixels["normal"])
    for epsilon in (0.005, 0.02):
        made = run(
            "evaluate", "--normal", standardised / "normal.npy", "--anomalous",
            standardised / "strange.npy", "--detector", "energy", "--model",
            "units_network:build", "--json", "--attack", f"linf:{epsilon}", "--steps", 20,
        )  # fmt: skip
        assert made.exit_code == 0, made.output
        (found,) = json.loads(made.output)["sets"].values()
        moved = attack_score(detector, pixels["strange"], epsilon=epsilon, steps=20)
        expected = gradood.evaluate(normal, moved.score).auroc
        assert found[f"attacked linf:{epsilon}"]["auroc"] == pytest.approx(expected, abs=0.01)
        assert expected < found["auroc"] - 0.02  # else any epsilon would do


def test_guaranteed_radii_are_in_pixels(standardised):
    """Normal inputs 0.2 pixels, which are 1 of the input's units, from the anomalous ones."""
    for name, value in (("normal", 0.75), ("anomalous", 0.55)):
        np.save(standardised / f"{name}.npy", np.full((3, 1, 4, 4), (value - 0.4) / 0.2, "float32"))
    common = ("evaluate", "--normal", standardised / "normal.npy", "--anomalous",
              standardised / "anomalous.npy", "--detector", "max-softmax", "--model",
              "units_network:build", "--json", "--samples", 1000)  # fmt: skip
    for units, near, far in (("pixels", 1, 0), ("input", 1, 1)):
        made = run(*common, "--units", units, "--guarantee", "l2:0.05", "--guarantee", "l2:0.3")
        assert made.exit_code == 0, made.output
        (found,) = json.loads(made.output)["sets"].values()
        assert found["guaranteed l2:0.05"]["auroc"] == near
        assert found["guaranteed l2:0.3"]["auroc"] == far
