"""The embedded denoiser removes noise, and its training script writes files like it."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gradood.data import embedded_classifier, embedded_images, embedded_labels
from gradood.errors import CheckpointError, InputError
from gradood.scoring.denoisers import load_denoiser as by_name
from gradood.smoothing import embedded_denoiser
from gradood.smoothing.patched_unet import load_denoiser

pytest.importorskip("diffusers")
SCRIPT = Path(__file__).parents[2] / "benchmarks/train_denoiser.py"
ASSET = Path(__file__).parents[2] / "gradood/data/assets/denoiser.safetensors"


def test_the_file_is_small_and_says_how_it_was_made():
    assert ASSET.stat().st_size < 2 * 2**20
    with safe_open(ASSET, framework="pt") as file:
        metadata = file.metadata()
        weights = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert sum(weight.numel() for weight in weights) <= 600_000
    assert {weight.dtype for weight in weights} == {torch.float16}
    assert metadata["command"].startswith("python benchmarks/train_denoiser.py")
    assert int(metadata["seconds_of_one_core"]) < 40 * 60


@pytest.mark.parametrize(
    "sigma, error, accuracy", [(0.12, 0.004, 0.8), (0.25, 0.01, 0.75), (0.5, 0.02, 0.65)]
)
@torch.no_grad()
def test_denoised_pictures_are_near_the_clean_ones_and_recognised(sigma, error, accuracy):
    """With noise added twice, as in the published code, the error is well above this."""
    x, labels = embedded_images("fashion-mnist")[:200], embedded_labels("fashion-mnist")[:200]
    noise = sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    denoiser, network = embedded_denoiser(), embedded_classifier()
    clean = denoiser(x + noise, sigma)
    found = (clean - x).square().mean()
    assert found < error < ((x + noise).clamp(0, 1) - x).square().mean()
    twice = denoiser(x + noise + sigma * torch.randn_like(x), sigma)
    assert (twice - x).square().mean() > 1.5 * found
    right = (network(clean).argmax(1) == labels).float().mean()
    assert right > accuracy
    assert right > (network(x + noise).argmax(1) == labels).float().mean() + 0.05


def test_each_call_builds_a_new_one():
    first = embedded_denoiser()
    first.net.unet.conv_in.weight.zero_()
    assert embedded_denoiser().net.unet.conv_in.weight.abs().sum() > 0
    assert not any(p.requires_grad for p in first.parameters()) and not first.training


def test_other_files_are_refused(tmp_path):
    (tmp_path / "nothing").write_bytes(b"nothing")
    for path in (
        tmp_path / "missing",
        tmp_path / "nothing",
        ASSET.parent / "classifier.safetensors",
    ):
        with pytest.raises(CheckpointError):
            load_denoiser(path)


def test_a_file_is_a_denoiser_by_name():
    x = embedded_images("fashion-mnist")[:2]
    found = by_name(str(ASSET), "cpu")
    assert torch.equal(found(x, 0.25), embedded_denoiser()(x, 0.25))


def test_without_diffusers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"pip install gradood\[diffusion\]"):
        embedded_denoiser()


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("train_denoiser", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_training_writes_a_denoiser_whose_error_falls(
    script, tmp_path, small_fashion_mnist, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["train_denoiser.py", "--output", "/some/where.safetensors"])
    root = small_fashion_mnist(tmp_path / "data", False)
    threads = torch.get_num_threads()
    errors = []
    x = embedded_images("fashion-mnist")[:50]
    for steps in (1, 25):
        output = tmp_path / f"{steps}.safetensors"
        script.main(output, steps=steps, data=root)
        with torch.no_grad():
            noisy = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            errors.append((load_denoiser(output)(noisy, 0.5) - x).square().mean())
    torch.set_num_threads(threads)
    assert errors[1] < 0.7 * errors[0]
    with safe_open(output, framework="pt") as file:
        assert file.metadata()["command"].endswith("train_denoiser --output where.safetensors")


def test_interrupted_training_ends_where_it_would_have_ended(
    script, tmp_path, small_fashion_mnist, monkeypatch
):
    root, threads = small_fashion_mnist(tmp_path / "data", False), torch.get_num_threads()
    monkeypatch.setattr(script, "EVERY", 2)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    script.main(whole, steps=4, data=root)
    done = script.Training._step

    def interrupted(training):
        if training.done == 3:
            raise KeyboardInterrupt
        return done(training)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(script.Training, "_step", interrupted)
        script.main(parts, steps=4, data=root)
    assert parts.with_suffix(".state").exists()
    with safe_open(parts, framework="pt") as file:
        assert file.metadata()["steps"] == "2"  # usable as it is
    script.main(parts, steps=4, data=root)
    torch.set_num_threads(threads)
    assert not parts.with_suffix(".state").exists()
    expected, found = load_file(whole), load_file(parts)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_tuning_goes_on_where_the_first_part_ended(
    script, tmp_path, small_fashion_mnist, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["train_denoiser.py", "--tune", "first.safetensors"])
    root, threads = small_fashion_mnist(tmp_path / "data", False), torch.get_num_threads()
    output = tmp_path / "tuned.safetensors"
    try:
        script.main(output, steps=2, tune=ASSET, data=root)
    except InputError as error:
        pytest.skip(str(error))  # the fonts that outliers are drawn with
    torch.set_num_threads(threads)
    x = embedded_images("fashion-mnist")[:20]
    with torch.no_grad():
        noisy = x + 0.25 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        before, after = embedded_denoiser()(noisy, 0.25), load_denoiser(output)(noisy, 0.25)
    assert 0 < (before - after).square().mean() < 0.001
    with safe_open(output, framework="pt") as file:
        assert "command of the first part" in file.metadata()
