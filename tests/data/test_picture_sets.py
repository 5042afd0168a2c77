"""Sets of colour pictures from every place where users have them."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import picture_set
from gradood.errors import InputError
from tests.pictures import needs_data


@pytest.fixture
def pictures():
    """Ten random pictures of 32 x 32, and classes of three kinds."""
    generator = np.random.default_rng(0)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    return generator.integers(0, 256, (10, 32, 32, 3), np.uint8), labels


def as_npz(root, pixels, labels):
    np.savez(root / "cifar10-test.npz", images=pixels, labels=labels)


def as_channels_first(root, pixels, labels):
    np.savez(root / "cifar10-test.npz", images=pixels.transpose(0, 3, 1, 2), labels=labels)


def as_folders(root, pixels, labels):
    for number, (one, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = root / "cifar10-test" / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(folder / f"{number:02}.png")


def as_torchvision(root, pixels, labels):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    content = {"data": rows, "labels": labels.tolist(), "batch_label": "testing batch 1 of 1"}
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))


def as_sheets(root, pixels, labels):
    sheet = np.zeros((32, 40, 32, 3), np.uint8)
    sheet[:, : len(pixels)] = pixels.transpose(1, 0, 2, 3)
    with zipfile.ZipFile(root / "cifar10-test.zip", "w") as archive:
        file, numbers = io.BytesIO(), io.BytesIO()
        Image.fromarray(sheet.reshape(32, 40 * 32, 3)).save(file, "WEBP", lossless=True)
        np.save(numbers, labels.astype(np.uint8))
        archive.writestr("000.webp", file.getvalue())
        archive.writestr("labels.npy", numbers.getvalue())
        archive.writestr("about.json", json.dumps({"count": len(pixels)}))


FORMS = [as_npz, as_channels_first, as_folders, as_torchvision, as_sheets]


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_every_form_gives_the_same_pictures(write, pictures, tmp_path):
    pixels, labels = pictures
    write(tmp_path, pixels, labels)
    found = picture_set("cifar10-test", tmp_path)
    order = np.argsort(labels, kind="stable") if write is as_folders else np.arange(10)
    np.testing.assert_array_equal(found.pixels.permute(0, 2, 3, 1), pixels[order])
    assert found.labels.tolist() == labels[order].tolist()
    assert found.images.max() <= 1


def test_svhn_is_read_from_its_matrix(pictures, tmp_path):
    pixels, labels = pictures
    savemat = pytest.importorskip("scipy.io").savemat
    written = np.where(labels == 0, 10, labels)[:, None]
    savemat(tmp_path / "test_32x32.mat", {"X": pixels.transpose(1, 2, 3, 0), "y": written})
    found = picture_set("svhn-test", tmp_path)
    np.testing.assert_array_equal(found.pixels.permute(0, 2, 3, 1), pixels)
    assert found.labels.tolist() == labels.tolist()


def test_textures_are_cut_to_the_centre_and_made_smaller_by_area(tmp_path):
    folder = tmp_path / "dtd" / "dtd" / "images" / "banded"
    folder.mkdir(parents=True)
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = np.arange(64, dtype=np.uint8)[:, None, None] * 2
    Image.fromarray(wide).save(folder / "one.png")
    found = picture_set("textures", tmp_path).pixels
    expected = (np.arange(0, 64, 2) * 2 + np.arange(1, 64, 2) * 2) / 2
    assert found.shape == (1, 3, 32, 32)
    np.testing.assert_allclose(found[0, 0, :, 5], expected, atol=1)


def test_larger_pictures_keep_their_size_where_it_is_asked_for(pictures, tmp_path):
    as_npz(tmp_path, *pictures)
    assert picture_set("cifar10-test", tmp_path, 48).pixels.shape == (10, 3, 48, 48)


def test_what_is_missing_or_damaged_is_named(pictures, tmp_path):
    with pytest.raises(InputError, match=r"there is no cifar10-test in .*cifar-10-batches-py"):
        picture_set("cifar10-test", tmp_path)
    (tmp_path / "cifar10-test.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match="cannot be read as cifar10-test"):
        picture_set("cifar10-test", tmp_path)
    (tmp_path / "cifar10-test.zip").unlink()
    np.savez(tmp_path / "cifar10-test.npz", images=pictures[0].astype(np.float32))
    with pytest.raises(InputError, match="uint8"):
        picture_set("cifar10-test", tmp_path)
    (tmp_path / "cifar10-test.npz").unlink()
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(InputError, match="Refused to unpickle"):
        picture_set("cifar10-test", tmp_path)


@needs_data
@pytest.mark.parametrize("name, count", [("textures", 1200), ("svhn-test", 10_000)])
def test_real_sets_are_whole(name, count):
    found = picture_set(name, Path(os.environ["GRADOOD_DATA"]))
    assert found.pixels.shape == (count, 3, 32, 32)
    assert len(found.labels) == count
