import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from benchmarks.datasets import fashion_mnist
from gradood.data import (
    EMBEDDED,
    embedded_classifier,
    embedded_images,
    embedded_labels,
    embedded_set,
    without_duplicates,
)
from gradood.errors import InputError

ASSETS = Path(str(files("gradood.data"))) / "assets"
NORMAL = ("fashion-mnist", "fashion-mnist-train")


@torch.no_grad()
def accuracy(images: torch.Tensor, labels: torch.Tensor) -> float:
    network = embedded_classifier()
    predicted = torch.cat([network(batch).argmax(1) for batch in torch.split(images, 500)])
    return (predicted == labels).double().mean().item()


def test_the_classifier_is_right_on_the_embedded_test_pictures() -> None:
    # 500 pictures: one standard deviation of the share is 1.2 %.
    assert accuracy(embedded_images("fashion-mnist"), embedded_labels("fashion-mnist")) >= 0.90


@pytest.mark.slow
def test_the_classifier_has_the_accuracy_it_states(debian_fashion_mnist: Path) -> None:
    test = fashion_mnist("test", debian_fashion_mnist)
    assert test.labels is not None
    measured = accuracy(test.images, test.labels)
    with safe_open(ASSETS / "classifier.safetensors", framework="pt") as file:
        stated = float(file.metadata()["test_accuracy"])
    assert measured >= 0.92
    # Rounding in another order may move a picture or two across a decision boundary.
    assert abs(100 * measured - stated) < 0.05


def test_the_classifier_is_ready_to_use_and_each_one_is_new() -> None:
    network = embedded_classifier()
    assert not network.training
    with torch.no_grad():
        for parameter in network.parameters():
            assert parameter.dtype == torch.float32
            parameter.zero_()
    assert any(parameter.any() for parameter in embedded_classifier().parameters())


def test_the_classifier_states_how_it_was_made() -> None:
    with safe_open(ASSETS / "classifier.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["command"].startswith("python benchmarks/train_classifier.py")
    assert metadata["seed"].isdecimal() and metadata["classes"] == "10"
    assert "/" not in metadata["command"].removeprefix("python benchmarks/")


def test_the_files_stay_small() -> None:
    sizes = {path.name: path.stat().st_size for path in ASSETS.iterdir()}
    networks = {f"{name}.safetensors" for name in ("classifier", "denoiser", "discriminator")}
    assert all(sizes[name] <= 2_000_000 for name in networks)
    assert sum(size for name, size in sizes.items() if name.endswith(".npz")) <= 3_000_000
    assert sizes.keys() == {f"{name}.npz" for name in EMBEDDED} | networks | {"README.md"}


@pytest.mark.parametrize("name", EMBEDDED)
def test_pictures_are_what_the_networks_take(name: str) -> None:
    images = embedded_images(name)
    assert images.dtype == torch.float32 and images.shape[1:] == (1, 28, 28)
    assert len(images) >= (500 if name in NORMAL else 300)
    assert images.min() == 0 and 0.9 < images.max() <= 1
    stored = embedded_set(name)
    assert len(without_duplicates(stored)) == len(stored)
    assert name == stored.name and stored.licence and stored.source
    readme = (ASSETS / "README.md").read_text().splitlines()
    row = next(line for line in readme if line.startswith(f"| `{name}.npz`"))
    assert stored.licence.split(",")[0] in row and str(len(stored)) in row


def test_pictures_to_fit_on_and_pictures_to_score_are_disjoint() -> None:
    fit, scored = (embedded_set(name).pixels.flatten(1) for name in reversed(NORMAL))
    together = torch.unique(torch.cat((fit, scored)), dim=0)
    assert len(together) == len(fit) + len(scored) == 2500


def test_normal_sets_have_the_labels_of_the_classifier() -> None:
    assert embedded_labels("fashion-mnist").bincount().tolist() == [50] * 10
    assert embedded_labels("fashion-mnist-train").bincount(minlength=10).min() > 150


def test_changing_pictures_in_place_does_not_change_the_next_ones() -> None:
    before = embedded_set("mnist").pixels.clone()
    changed = embedded_set("mnist")
    changed.pixels.zero_()
    changed.groups.zero_()
    assert torch.equal(embedded_set("mnist").pixels, before)
    assert embedded_set("mnist").groups.any()


def test_unknown_names_and_missing_labels_are_refused() -> None:
    with pytest.raises(InputError, match="'cifar'; there are fashion-mnist"):
        embedded_images("cifar")
    with pytest.raises(InputError, match="no labels"):
        embedded_labels("photos")


def test_importing_the_data_package_imports_no_other_data_package() -> None:
    code = (
        "import sys, gradood.data; "
        "print([m for m in ('sklearn', 'torchvision', 'skimage', 'mlxtend', 'PIL') "
        "if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr
