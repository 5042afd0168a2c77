import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open

from benchmarks.datasets import relabelled, split_by_class
from gradood.data import embedded_set, load_classifier

SCRIPT = Path(__file__).parents[2] / "benchmarks/train_classifier.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_classifier", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_augmented_pictures_are_shifted_and_mirrored_ones_of_the_set(script: ModuleType) -> None:
    data = embedded_set("fashion-mnist")
    images, labels = next(script.augmented_batches(data, torch.Generator().manual_seed(0)))
    assert images.shape == (256, 1, 28, 28)
    padded = torch.nn.functional.pad(data.images, (2, 2, 2, 2))
    windows = [padded[..., i : i + 28, j : j + 28] for i in range(5) for j in range(5)]
    variants = torch.stack([v for w in windows for v in (w, w.flip(-1))], 1)  # [N, 50, 1, 28, 28]
    kinds = set()
    for image, label in zip(images[:40], labels[:40], strict=True):
        row, kind = (variants == image).flatten(2).all(2).nonzero()[0].tolist()
        assert data.labels is not None and data.labels[row] == label
        kinds.add(kind)
    assert len(kinds) > 10


@pytest.mark.slow
def test_training_writes_a_classifier_that_states_how_it_was_made(
    script: ModuleType,
    tmp_path: Path,
    small_fashion_mnist: Callable[[Path, bool], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = small_fashion_mnist(tmp_path / "data", True)
    output = tmp_path / "network.safetensors"
    threads = torch.get_num_threads()
    options = ["--output", str(output), "--epochs", "12"]
    monkeypatch.setattr(sys, "argv", ["train_classifier.py", *options])
    script.main(output, width=8, epochs=12, seed=5, held_out="3,7,8", root=root)
    torch.set_num_threads(threads)
    with safe_open(output, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["command"] == (
        "python benchmarks/train_classifier.py --output network.safetensors --epochs 12"
    )
    assert (metadata["seed"], metadata["held_out"], metadata["classes"]) == ("5", "3,7,8", "7")
    test = relabelled(split_by_class(embedded_set("fashion-mnist"), [3, 7, 8])[0])
    network = load_classifier(output)
    with torch.no_grad():
        right = (network(test.images).argmax(1) == test.labels).double().mean().item()
    assert right > 0.35, "twelve short epochs must beat chance (1 in 7) clearly"
    assert metadata["test_accuracy"] == f"{100 * right:.2f}"
