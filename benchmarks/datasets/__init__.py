"""Sets of pictures that only experiments use, from packages, fonts and downloaded archives."""

from benchmarks.datasets.fashion import fashion_mnist, relabelled, split_by_class
from benchmarks.datasets.letters import glyphs
from benchmarks.datasets.packaged import animals, digits, mnist
from benchmarks.datasets.photos import photo_patches
from benchmarks.datasets.picture_sets import picture_set
from benchmarks.datasets.suite import Suite, anomalous_sets, evaluation_suite

__all__ = [
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
]
