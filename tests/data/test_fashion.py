from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.datasets import fashion_mnist, relabelled, split_by_class
from benchmarks.datasets.fashion import CLASSES, HELD_OUT
from gradood.data import embedded_images, embedded_labels, embedded_set
from gradood.errors import InputError

Writer = Callable[[Path, bool], Path]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
def test_files_are_read_from_the_root_given(
    tmp_path: Path, small_fashion_mnist: Writer, compressed: bool, folder: str
) -> None:
    small_fashion_mnist(tmp_path / folder, compressed)
    for split, name in (("train", "fashion-mnist-train"), ("test", "fashion-mnist")):
        data = fashion_mnist(split, tmp_path)
        assert torch.equal(data.images, embedded_images(name))
        assert data.labels is not None and torch.equal(data.labels, embedded_labels(name))


def test_the_debian_package_holds_60000_and_10000(debian_fashion_mnist: Path) -> None:
    for split, count in (("train", 60_000), ("test", 10_000)):
        data = fashion_mnist(split, debian_fashion_mnist)
        assert data.labels is not None
        assert data.labels.bincount().tolist() == [count // 10] * 10
    assert torch.equal(data.pixels, fashion_mnist("test").pixels)


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dataset-fashion-mnist.*root=.*download=True"):
        fashion_mnist("train", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_download_needs_a_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.datasets.fashion.DEBIAN_ROOT", tmp_path)
    with pytest.raises(InputError, match="download=True needs root"):
        fashion_mnist("train", download=True)


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(InputError, match="validation"):
        fashion_mnist("validation")


def test_damaged_files_are_refused(tmp_path: Path, small_fashion_mnist: Writer) -> None:
    small_fashion_mnist(tmp_path, False)
    images = tmp_path / "t10k-images-idx3-ubyte"
    content = images.read_bytes()
    for damaged, message in (
        (content[:-1], "cut short"),
        (content[:9], "cut short"),
        (b"\0\0\x0d" + content[3:], "not an IDX file"),
        (b"", "not an IDX file"),
    ):
        images.write_bytes(damaged)
        with pytest.raises(InputError, match=message):
            fashion_mnist("test", tmp_path)
    images.unlink()
    with pytest.raises(InputError, match="not found"):
        fashion_mnist("test", tmp_path)


def test_damaged_gzip_and_partial_folders_are_refused(
    tmp_path: Path, small_fashion_mnist: Writer
) -> None:
    small_fashion_mnist(tmp_path, True)
    images = tmp_path / "t10k-images-idx3-ubyte.gz"
    for damaged in (images.read_bytes()[:1000], b"plain"):
        images.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged gzip"):
            fashion_mnist("test", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="only a part"):
        fashion_mnist("train", tmp_path)


def test_held_out_classes_are_separated_and_the_rest_renumbered() -> None:
    test = embedded_set("fashion-mnist")
    kept, held_out = split_by_class(test, HELD_OUT)
    assert [CLASSES[c] for c in HELD_OUT] == ["Dress", "Sneaker", "Bag"]
    assert (len(kept), len(held_out)) == (350, 150)
    assert held_out.labels is not None and kept.labels is not None
    assert set(held_out.labels.tolist()) == {3, 7, 8}
    renumbered = relabelled(kept)
    assert renumbered.labels is not None
    old = torch.tensor([0, 1, 2, 4, 5, 6, 9])
    assert torch.equal(old[renumbered.labels], kept.labels)
    assert torch.equal(renumbered.pixels, kept.pixels)


def test_classes_can_only_be_separated_where_they_occur() -> None:
    with pytest.raises(InputError, match=r"\[12\] do not occur"):
        split_by_class(embedded_set("fashion-mnist"), [3, 12])
    with pytest.raises(InputError, match="no labels"):
        split_by_class(embedded_set("photos"), [3])
    with pytest.raises(InputError, match="no labels"):
        relabelled(embedded_set("photos"))
