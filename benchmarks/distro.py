"""The whole table of DISTRO: clean, guaranteed and adversarial detection of several models.

    OMP_NUM_THREADS=1 python -m benchmarks.distro [--out benchmarks/results] [--cache DIR]

On Fashion-MNIST with the embedded networks; ``benchmarks.papers.distro`` is the same on CIFAR-10.
Writes ``distro.csv`` (a row for each model, anomalous set, norm and kind of evaluation),
``distro_normal.csv`` (accuracies and times), ``distro.md`` and ``distro.png``. With ``--cache``,
samples and attacks that are there already are not drawn again. The row "outlier-exposed" needs
``benchmarks/checkpoints/exposed.safetensors`` of ``benchmarks.train_discriminator --exposed --steps
300``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.datasets import evaluation_suite
from benchmarks.distro_study import Model, Size, Study, run
from gradood.data import embedded_classifier, load_classifier
from gradood.distro import embedded_discriminator
from gradood.smoothing import embedded_denoiser

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def fashion(root: Path | None) -> Study:
    """The embedded networks on Fashion-MNIST."""
    plain, d = embedded_classifier().requires_grad_(False), embedded_discriminator()
    denoiser = embedded_denoiser().bfloat16()
    models = [
        Model("plain", plain),
        Model("discriminator", plain, d),
        Model("smoothed", plain, None, 0.25),
        Model("denoised", plain, None, 0.25, denoiser),
        Model("joint", plain, d, 0.25, denoiser),
        Model("joint, slight noise", plain, d, 0.02, denoiser),
    ]
    if (exposed := CHECKPOINTS / "exposed.safetensors").exists():
        models.insert(1, Model("outlier-exposed", load_classifier(exposed).requires_grad_(False)))
    size, suite = Size(), evaluation_suite(root)
    sets = {
        name: one.sample(size.anomalous).images
        for name, one in sorted(suite.anomalous_scored.items())
    }
    return Study("distro", models, suite.normal_scored, sets, size, FASHION)


#: What the page of Fashion-MNIST says first.
FASHION = """# Clean, guaranteed and adversarial detection, measured

Made by `OMP_NUM_THREADS=1 python -m benchmarks.distro`. Normal: the first {normal} pictures of the
second half of the Fashion-MNIST test set; anomalous: {anomalous} pictures of the second half of
each of ten sets. The outlier-exposed model saw outliers of none of the ten sets, nor did the
discriminator. sigma is 0.25, and 0.02 in "slight noise", which costs hardly any accuracy.
"""


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    cache: Annotated[Path | None, typer.Option(help="Keeps samples and attacks.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the Fashion-MNIST files.")] = None,
) -> None:
    """Compute the table, and write it with its page and figure."""
    run(fashion(root), out, cache)


if __name__ == "__main__":
    typer.run(main)
