"""Pictures to fit, train and score with: loaders, splits, and the small assets in the package."""

from gradood.data.embedded import (
    EMBEDDED,
    embedded_classifier,
    embedded_denoiser,
    embedded_images,
    embedded_labels,
    embedded_set,
)
from gradood.data.fashion import fashion_mnist, relabelled, split_by_class
from gradood.data.image_set import ImageSet, halve_by_group, without_duplicates
from gradood.data.letters import glyphs
from gradood.data.made import gaussian_noise, inverted, pixel_shuffled, rotated, uniform_noise
from gradood.data.networks import ResNet, load_classifier
from gradood.data.packaged import animals, digits, mnist
from gradood.data.photos import photo_patches
from gradood.data.picture_sets import picture_set
from gradood.data.suite import Suite, anomalous_sets, evaluation_suite

__all__ = [
    "EMBEDDED",
    "ImageSet",
    "ResNet",
    "Suite",
    "animals",
    "anomalous_sets",
    "digits",
    "embedded_classifier",
    "embedded_denoiser",
    "embedded_images",
    "embedded_labels",
    "embedded_set",
    "evaluation_suite",
    "fashion_mnist",
    "gaussian_noise",
    "glyphs",
    "halve_by_group",
    "inverted",
    "load_classifier",
    "mnist",
    "photo_patches",
    "picture_set",
    "pixel_shuffled",
    "relabelled",
    "rotated",
    "split_by_class",
    "uniform_noise",
    "without_duplicates",
]
