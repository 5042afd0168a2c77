"""The small files inside the package: a trained classifier, and real pictures to score with it."""

import json
from functools import cache
from importlib.resources import as_file, files

import numpy as np
import torch
from torch import Tensor

from gradood.arguments import checked
from gradood.data.image_set import ImageSet
from gradood.data.networks import ResNet, load_classifier
from gradood.errors import InputError

EMBEDDED = (
    "fashion-mnist",
    "fashion-mnist-train",
    "mnist",
    "animals",
    "glyphs",
    "photos",
    "digits",
)
"""Names for ``embedded_images``: normal test pictures, normal pictures to fit detectors on (from
the training set), and five anomalous sets."""

ASSETS = files("gradood.data") / "assets"


def embedded_classifier() -> ResNet:
    """The committed Fashion-MNIST network, on the CPU, in float32 and eval mode.

    It takes float32 ``[N, 1, 28, 28]`` in [0, 1] (normalisation is inside) and returns logits
    ``[N, 10]``. How it was trained, and its accuracy, stand in the metadata of
    ``assets/classifier.safetensors``. Each call builds a new network, so changing one is safe.

    Example:
        >>> from gradood.data import embedded_classifier, embedded_images
        >>> embedded_classifier()(embedded_images("fashion-mnist")).shape
        torch.Size([500, 10])
    """
    with as_file(ASSETS / "classifier.safetensors") as path:
        return load_classifier(path)


@cache
def _read(name: str) -> ImageSet:
    with (ASSETS / f"{name}.npz").open("rb") as file, np.load(file) as arrays:
        about = json.loads(str(arrays["about"]))
        labels = arrays["labels"] if "labels" in arrays else None
        return ImageSet(
            name=about["name"],
            pixels=torch.from_numpy(arrays["pixels"]),
            groups=torch.from_numpy(arrays["groups"].astype(np.int64)),
            licence=about["licence"],
            source=about["source"],
            labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        )


@checked
def embedded_set(name: str) -> ImageSet:
    """One of the embedded sets with its groups, labels, licence and source.

    Args:
        name: One of ``EMBEDDED``.

    Raises:
        InputError: There is no such set.
    """
    if name not in EMBEDDED:
        raise InputError(f"There is no embedded set {name!r}; there are {', '.join(EMBEDDED)}.")
    stored = _read(name)
    # A copy each time: pictures changed in place by a caller must not change for the next one.
    return stored.select(torch.arange(len(stored), dtype=torch.int64, device="cpu"))


@checked
def embedded_images(name: str) -> Tensor:
    """Pictures of one embedded set, float32 ``[N, 1, 28, 28]`` in [0, 1].

    Args:
        name: One of ``EMBEDDED``; ``"fashion-mnist"`` is the normal test set.

    Raises:
        InputError: There is no such set.
    """
    return embedded_set(name).images


@checked
def embedded_labels(name: str) -> Tensor:
    """Labels of one embedded set, int64 ``[N]``, in the order of ``embedded_images``.

    For the two normal sets they are the classes of the embedded classifier; for an anomalous set
    they are its own classes (digit, animal, letter), which the classifier does not know.

    Raises:
        InputError: There is no such set, or it has no labels.
    """
    labels = embedded_set(name).labels
    if labels is None:
        raise InputError(f"The embedded set {name!r} has no labels.")
    return labels
