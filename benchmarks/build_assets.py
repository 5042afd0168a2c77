"""Rebuild the pictures in gradood/data/assets from the data sets they are taken from.

python benchmarks/build_assets.py

Needs the Debian packages dataset-fashion-mnist, fonts-lato, fonts-open-sans, fonts-roboto-unhinted,
fonts-vollkorn, pip install gradood[data] and pip install --no-deps animal-mnist.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import gradood
from benchmarks.datasets import animals, digits, fashion_mnist, glyphs, mnist, photo_patches
from gradood.data import ImageSet

log = logging.getLogger("gradood")
ASSETS = Path(gradood.__file__).parent / "data/assets"
FIT, SCORED_A_CLASS, ANOMALOUS = 2000, 50, 350


def equal_classes(image_set: ImageSet, count: int, seed: int) -> ImageSet:
    """``count`` pictures of every class, in random order."""
    shuffled = image_set.sample(len(image_set), seed=seed)
    assert shuffled.labels is not None
    rows = [
        (shuffled.labels == label).nonzero()[:count, 0] for label in torch.unique(shuffled.labels)
    ]
    return shuffled.select(torch.cat(rows)).sample(count * len(rows), seed=seed)


def write(image_set: ImageSet, folder: Path) -> None:
    """One compressed npz per set: pixels, groups, labels, and where they come from."""
    about = {key: getattr(image_set, key) for key in ("name", "licence", "source")}
    columns: dict[str, Any] = {
        "pixels": image_set.pixels.numpy(),
        "groups": image_set.groups.numpy().astype(np.int32),
        "about": np.array(json.dumps(about)),
    }
    if image_set.labels is not None:
        columns["labels"] = image_set.labels.numpy().astype(np.uint8)
    path = folder / f"{image_set.name}.npz"
    np.savez_compressed(path, **columns)
    log.info("%-22s %5d pictures %8d bytes", path.name, len(image_set), path.stat().st_size)


def main(
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = ASSETS,
    root: Annotated[Path | None, typer.Option(help="Folder with the Fashion-MNIST files.")] = None,
    fonts: Annotated[Path | None, typer.Option(help="Folder with fonts.")] = None,
    seed: int = 0,
) -> None:
    """Draw the samples and write them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train = fashion_mnist("train", root)
    # The second half of the test set is the one that every benchmark scores.
    test = fashion_mnist("test", root).select(slice(5000, None))
    write(replace(train.sample(FIT, seed=seed), name="fashion-mnist-train"), output)
    write(equal_classes(test, SCORED_A_CLASS, seed), output)
    for image_set in (mnist(), animals(), glyphs(fonts), photo_patches(), digits()):
        write(image_set.sample(ANOMALOUS, seed=seed), output)


if __name__ == "__main__":
    typer.run(main)
