"""CIFAR-10, CIFAR-100, SVHN, Textures, Tiny ImageNet, Places …, from where users have them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.datasets.building import from_array
from benchmarks.datasets.fashion import read_idx
from benchmarks.datasets.pickled_arrays import load_pickled_arrays
from gradood.data.image_set import ImageSet
from gradood.data.optional import require
from gradood.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".webp"}
#: Pictures in one row of a sheet.
_PER_ROW = 40


class Pictures(NamedTuple):
    """Square RGB pictures uint8 ``[N, S, S, 3]``, and classes ``[N]`` where they are known."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None = None


def _resized(image: Any, size: int) -> npt.NDArray[np.uint8]:
    """The centre square as RGB; made smaller by area, so that no pixel is left out."""
    resampling = require("PIL.Image").Resampling
    image = image.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        image = image.crop(box)
    how = resampling.BOX if side > size else resampling.BICUBIC
    if side != size:
        image = image.resize((size, size), how, box=box)
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    return pixels


def _of_files(files: Iterable[Any], classes: Iterable[str], size: int) -> Pictures:
    """Pictures of files or file objects, and numbers for the names of their classes."""
    opener, names = require("PIL.Image").open, list(classes)
    pixels = []
    for file in files:
        with opener(file) as image:
            pixels.append(_resized(image, size))
    if len(set(names)) < 2:
        return Pictures(np.stack(pixels))
    return Pictures(np.stack(pixels), np.unique(names, return_inverse=True)[1].astype(np.int64))


def _of_arrays(pixels: npt.NDArray[Any], labels: Any, size: int) -> Pictures:
    """Pictures ``[N, H, W]``, ``[N, H, W, 3]`` or ``[N, 3, H, W]``."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise InputError(f"pictures must be uint8 [N, H, W, 3], got {pixels.dtype} {pixels.shape}")
    if pixels.ndim == 4 and pixels.shape[3] != 3 and pixels.shape[1] == 3:
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.shape[1:] != (size, size, 3):
        image = require("PIL.Image").fromarray
        pixels = np.stack([_resized(image(one), size) for one in pixels])
    return Pictures(pixels, None if labels is None else np.asarray(labels).astype(np.int64))


def _read_npz(path: Path, size: int) -> Pictures:
    with np.load(path, allow_pickle=False) as file:
        names = [name for name in ("images", "pixels", "x", "arr_0") if name in file]
        if not names:
            raise InputError(f"{path} holds {', '.join(file)}; its pictures should be images")
        labels = next((file[name] for name in ("labels", "y") if name in file), None)
        return _of_arrays(file[names[0]], labels, size)


def _read_zip(path: Path, size: int) -> Pictures:
    """A zip of pictures, or of sheets of pictures, 40 a row, with their number in about.json."""
    with zipfile.ZipFile(path) as archive:
        entries = sorted(n for n in archive.namelist() if Path(n).suffix.lower() in SUFFIXES)
        about = json.loads(archive.read("about.json")) if "about.json" in archive.namelist() else {}
        labels = None
        if "labels.npy" in archive.namelist():
            labels = np.load(io.BytesIO(archive.read("labels.npy")), allow_pickle=False)
        files = (io.BytesIO(archive.read(entry)) for entry in entries)
        if "count" in about and about["count"] != len(entries):
            sheets = np.concatenate([_cut(require("PIL.Image").open(file)) for file in files])
            return _of_arrays(sheets[: about["count"]], labels, size)
        found = _of_files(files, (str(Path(entry).parent) for entry in entries), size)
        return found if labels is None else Pictures(found.pixels, labels.astype(np.int64))


def _cut(sheet: Any) -> npt.NDArray[np.uint8]:
    side = sheet.width // _PER_ROW
    sheets: npt.NDArray[np.uint8] = np.asarray(sheet.convert("RGB"))
    pixels = sheets.reshape(-1, side, _PER_ROW, side, 3)
    pictures: npt.NDArray[np.uint8] = pixels.swapaxes(1, 2).reshape(-1, side, side, 3)
    return pictures


def _read_folder(path: Path, size: int) -> Pictures:
    """All pictures below a folder, in the order of their names; folders are classes."""
    files = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"there are no pictures below {path}")
    return _of_files(files, (str(one.parent) for one in files), size)


def _read_cifar(names: Iterable[str], key: str, folder: Path, size: int) -> Pictures:
    batches = [load_pickled_arrays((folder / name).read_bytes()) for name in names]
    pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([np.asarray(batch[key]) for batch in batches])
    return _of_arrays(pixels.transpose(0, 2, 3, 1), labels, size)


def _read_svhn(path: Path, size: int) -> Pictures:
    content = require("scipy.io").loadmat(path)
    # Columns first in MATLAB; the digit 0 is written as 10.
    return _of_arrays(content["X"].transpose(3, 0, 1, 2), content["y"].reshape(-1) % 10, size)


def _read_mnist(folder: Path, size: int) -> Pictures:
    images, labels = (
        next(iter(sorted(folder.glob(f"t10k-{stem}-ubyte*"))), folder / f"t10k-{stem}-ubyte")
        for stem in ("images-idx3", "labels-idx1")
    )
    return _of_arrays(read_idx(images), read_idx(labels), size)


Reader = Callable[[Path, int], Pictures]

_CIFAR10_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
#: Where torchvision, or the authors' archive, puts a set below a root, and how it is read there.
PLACES: dict[str, dict[str, Reader]] = {
    "cifar10-train": {"cifar-10-batches-py": partial(_read_cifar, _CIFAR10_TRAIN, "labels")},
    "cifar10-test": {"cifar-10-batches-py": partial(_read_cifar, ("test_batch",), "labels")},
    "cifar100-train": {"cifar-100-python": partial(_read_cifar, ("train",), "fine_labels")},
    "cifar100-test": {"cifar-100-python": partial(_read_cifar, ("test",), "fine_labels")},
    "svhn-train": {"train_32x32.mat": _read_svhn, "svhn/train_32x32.mat": _read_svhn},
    "svhn-test": {"test_32x32.mat": _read_svhn, "svhn/test_32x32.mat": _read_svhn},
    "textures": {"dtd/dtd/images": _read_folder, "dtd/images": _read_folder},
    "tiny-imagenet": {"tiny-imagenet-200/val": _read_folder},
    "places": {
        "places365_standard/val": _read_folder,
        "val_256": _read_folder,
        "places365": _read_folder,
    },
    "gtsrb": {"gtsrb/GTSRB/Final_Test/Images": _read_folder},
    "mnist-test": {"MNIST/raw": _read_mnist},
}


def picture_set(name: str, root: str | Path, size: int = 32) -> ImageSet:
    """A set of RGB pictures of ``size`` x ``size`` from a folder of sets.

    Looked for in this order: ``NAME.npz`` (``images`` uint8 ``[N, H, W, 3]`` and, if they are
    known, ``labels`` ``[N]``), ``NAME.zip`` (of pictures, or of sheets of pictures), a folder
    ``NAME`` of pictures, whose folders are classes, and where torchvision has it (``PLACES``).
    Other sizes are cut to the centre square and made smaller by area, or larger bicubically.

    Args:
        name: ``"cifar10-train"``, ``"cifar100-test"``, ``"svhn-test"``, ``"textures"``,
            ``"tiny-imagenet"``, ``"places"`` …, or any name for which there is such a file.
        root: Folder of the sets, such as torchvision's ``root``.
        size: Height and width in pixels.

    Returns:
        The pictures in the order of the files; labels as the files have them, or None.

    Raises:
        InputError: There is no such set, or its files are not what they should be.
    """
    root = Path(root)
    readers: dict[str, Reader] = {f"{name}.npz": _read_npz, f"{name}.zip": _read_zip}
    readers |= {name: _read_folder} | PLACES.get(name, {})
    for place, read in readers.items():
        if (root / place).exists():
            try:
                pixels, labels = read(root / place, size)
            except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{root / place} cannot be read as {name}: {error!r}") from error
            return from_array(
                *(name, pixels, "as its source states", str(root / place)), labels=labels
            )
    raise InputError(
        f"there is no {name} in {root}: expected {', '.join(readers)} (a NumPy archive, a zip, a "
        "folder of pictures, or torchvision's own place)"
    )
