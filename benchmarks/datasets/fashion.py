"""Fashion-MNIST, the normal data: from a folder, from the Debian package, or downloaded."""

import gzip
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.datasets.building import from_array
from gradood.data.image_set import ImageSet
from gradood.data.optional import require
from gradood.errors import InputError

DEBIAN_ROOT = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
HELD_OUT = (3, 7, 8)
"""Dress, Sneaker, Bag: the near-anomalous classes of the benchmarks."""

_PREFIXES = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes (gzipped if it ends in .gz) as an array.

    Layout: two zero bytes, 0x08 for unsigned bytes, the number of dimensions D, then D big-endian
    32-bit sizes, then the bytes in row-major order.

    Raises:
        InputError: The file is not such a file, or is cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is a damaged gzip file: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(f"{path} is not an IDX file of unsigned bytes.")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise InputError(f"{path} is cut short: its header is incomplete.")
    shape = np.frombuffer(content[4:start], ">u4").astype(np.int64)
    if len(content) - start != shape.prod():
        raise InputError(
            f"{path} is cut short or damaged: its header states the shape {shape.tolist()}, and "
            f"{len(content) - start} bytes follow."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _find(root: Path, stem: str) -> Path | None:
    candidates = (root / name for name in (f"{stem}-ubyte.gz", f"{stem}-ubyte"))
    return next((path for path in candidates if path.is_file()), None)


def _downloaded(root: Path) -> Path:
    datasets = require("torchvision.datasets")
    datasets.FashionMNIST(str(root), download=True)
    return root / "FashionMNIST" / "raw"


def _folder(root: str | Path | None, stem: str, download: bool) -> Path:
    if root is None:
        folders = [DEBIAN_ROOT]
    else:
        folders = [Path(root), Path(root) / "FashionMNIST" / "raw"]
    for folder in folders:
        if _find(folder, stem):
            return folder
    if download:
        if root is None:
            raise InputError("download=True needs root: the folder to download Fashion-MNIST into.")
        return _downloaded(Path(root))
    raise InputError(
        f"Fashion-MNIST ({stem}-ubyte.gz) was not found in {' or '.join(map(str, folders))}. "
        "Install the Debian package dataset-fashion-mnist, or pass root=<folder with the four "
        "*-ubyte.gz files>, or pass root=<folder> and download=True to fetch it with torchvision."
    )


def fashion_mnist(
    split: str = "train", root: str | Path | None = None, download: bool = False
) -> ImageSet:
    """Fashion-MNIST: 60 000 training or 10 000 test pictures of ten kinds of clothing.

    Args:
        split: ``"train"`` or ``"test"``.
        root: Folder with the four ``*-ubyte.gz`` files, or a torchvision root; None means the place
            where the Debian package ``dataset-fashion-mnist`` puts them.
        download: Let torchvision fetch the files into ``root`` if they are not there. Never done
            unless asked for.

    Returns:
        The pictures in the order of the files, with labels (``CLASSES``).

    Raises:
        InputError: Unknown split, files missing or damaged.
    """
    if split not in _PREFIXES:
        raise InputError(f'split must be "train" or "test", got {split!r}.')
    prefix = _PREFIXES[split]
    folder = _folder(root, f"{prefix}-images-idx3", download)
    images, labels = (_find(folder, f"{prefix}-{stem}") for stem in ("images-idx3", "labels-idx1"))
    if images is None or labels is None:
        raise InputError(f"{folder} holds only a part of the Fashion-MNIST {split} files.")
    return from_array(
        "fashion-mnist",
        read_idx(images),
        licence="MIT",
        source="Xiao, Rasul, Vollgraf, arXiv 1708.07747",
        labels=read_idx(labels),
    )


def split_by_class(image_set: ImageSet, held_out: Iterable[int]) -> tuple[ImageSet, ImageSet]:
    """Separate the classes a classifier was trained without: ``(kept, held_out)``.

    Labels are unchanged in both; ``relabelled`` numbers the kept ones from 0.

    Raises:
        InputError: The set has no labels, or a class does not occur in it.
    """
    classes = sorted(set(held_out))
    if image_set.labels is None:
        raise InputError(f"{image_set.name} has no labels to split by.")
    present = set(torch.unique(image_set.labels).tolist())
    if not set(classes) <= present:
        raise InputError(
            f"Classes {sorted(set(classes) - present)} do not occur in {image_set.name}."
        )
    outside = torch.isin(image_set.labels, torch.tensor(classes, dtype=torch.int64, device="cpu"))
    return image_set.select(~outside), image_set.select(outside)


def relabelled(image_set: ImageSet) -> ImageSet:
    """The same pictures with classes renumbered 0, 1, … in the order of their old labels."""
    if image_set.labels is None:
        raise InputError(f"{image_set.name} has no labels to renumber.")
    labels = torch.unique(image_set.labels, return_inverse=True)[1]
    return replace(image_set, labels=labels)
