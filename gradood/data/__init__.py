"""Pictures to fit, train and score with: the small assets in the package, and how to split sets."""

from typing import NoReturn

from gradood.data.embedded import (
    EMBEDDED,
    embedded_classifier,
    embedded_images,
    embedded_labels,
    embedded_set,
)
from gradood.data.image_set import ImageSet, halve_by_group, without_duplicates
from gradood.data.made import gaussian_noise, inverted, pixel_shuffled, rotated, uniform_noise
from gradood.data.networks import ResNet, load_classifier

__all__ = [
    "EMBEDDED",
    "ImageSet",
    "ResNet",
    "embedded_classifier",
    "embedded_images",
    "embedded_labels",
    "embedded_set",
    "gaussian_noise",
    "halve_by_group",
    "inverted",
    "load_classifier",
    "pixel_shuffled",
    "rotated",
    "uniform_noise",
    "without_duplicates",
]

#: Public names of earlier versions -> where they are now.
_MOVED = {
    "embedded_denoiser": "gradood.smoothing.embedded_denoiser",
    **{
        name: f"benchmarks.datasets.{name}, in a checkout of the repository"
        for name in (
            "Suite",
            "animals",
            "anomalous_sets",
            "digits",
            "evaluation_suite",
            "fashion_mnist",
            "glyphs",
            "mnist",
            "photo_patches",
            "picture_set",
            "relabelled",
            "split_by_class",
        )
    },
}


def __getattr__(name: str) -> NoReturn:
    if name in _MOVED:
        raise AttributeError(f"gradood.data.{name} is now {_MOVED[name]}")
    raise AttributeError(f"module 'gradood.data' has no attribute {name!r}")
