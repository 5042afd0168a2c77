"""Does the denoiser help the classifier under noise? Errors, accuracy and certified accuracy.

    OMP_NUM_THREADS=1 python benchmarks/denoising.py [--out benchmarks/results]

Writes ``denoising.csv``, one row for every sigma with and without the embedded denoiser, and
``denoising.md``. Rows that are there already are kept: delete the file to start again.
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

import gradood
from benchmarks.datasets import fashion_mnist
from gradood.data import embedded_classifier
from gradood.smoothing import embedded_denoiser

log = logging.getLogger("gradood")
SIGMAS = (0.12, 0.25, 0.5, 1.0)
RADIUS, ALPHA, SAMPLES = 0.25, 1e-3, 600
PICTURES, CERTIFIED = 1000, 50

Row = dict[str, str]


@torch.no_grad()
def one_draw(x: Tensor, labels: Tensor, sigma: float, denoise: bool) -> Row:
    """Squared error and accuracy with one noise an input, from the same stream for both."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    seen = x + sigma * noise
    denoiser, network = embedded_denoiser(), embedded_classifier()
    if denoise:
        seen = torch.cat([denoiser(part, sigma) for part in seen.split(100)])
    predicted = torch.cat([network(part) for part in seen.split(100)]).argmax(1)
    level = denoiser.level(sigma)
    return {
        "timestep": str(level.timestep),
        "mismatch": f"{level.mismatch:.4f}",
        "mse": f"{(seen.clamp(0, 1) - x).square().mean():.5f}",
        "accuracy": f"{(predicted == labels).double().mean():.4f}",
    }


def certified(x: Tensor, labels: Tensor, sigma: float, denoise: bool) -> Row:
    """Share of pictures whose class is right, and certified within ``RADIUS``."""
    denoiser = embedded_denoiser().bfloat16() if denoise else None
    settings = gradood.Smoothing(sigma=sigma, n=SAMPLES, alpha=ALPHA, denoiser=denoiser)
    made = gradood.certify_class(embedded_classifier(), x, settings=settings, radius=RADIUS)
    right = ~made.abstained & (made.label == labels)
    return {
        "certified_accuracy": f"{right.double().mean():.3f}",
        "samples": str(int(made.samples.sum())),
    }


def write_table(rows: list[Row], clean: float, path: Path) -> None:
    """The page, from the rows."""
    lines = [
        "# One-shot denoising before the embedded classifier, measured",
        "",
        "Made by `OMP_NUM_THREADS=1 python benchmarks/denoising.py`; the numbers are in "
        f"`denoising.csv`. Error and accuracy: the first {PICTURES} Fashion-MNIST test pictures, "
        "one noise each, the same with and without denoiser; error in squared pixels of [0, 1], "
        "after clamping. t is the step of the diffusion, mismatch how much more noise it expects. "
        f"Certified accuracy: the first {CERTIFIED} of them, right and certified within l2 "
        f"r = {RADIUS} with alpha = {ALPHA:g} an input and at most {SAMPLES} samples; the denoiser "
        "in bfloat16. Without any noise, accuracy on "
        f"the {PICTURES} is {clean:.1%}.",
        "",
        "| sigma | t | mismatch | error noisy | denoised | accuracy noisy | denoised "
        "| certified noisy | denoised |",
        "| ---: " * 9 + "|",
    ]
    for sigma in SIGMAS:
        plain, denoised = (
            next(r for r in rows if float(r["sigma"]) == sigma and r["denoiser"] == str(used))
            for used in (False, True)
        )
        pairs = " | ".join(
            f"{float(plain[key]):{style}} | {float(denoised[key]):{style}}"
            for key, style in (("mse", ".4f"), ("accuracy", ".1%"), ("certified_accuracy", ".0%"))
        )
        lines.append(f"| {sigma:g} | {plain['timestep']} | {plain['mismatch']} | {pairs} |")
    path.write_text("\n".join(lines) + "\n")


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    root: Annotated[Path | None, typer.Option(help="Folder with the Fashion-MNIST files.")] = None,
) -> None:
    """Fill in what is missing of the CSV, and write the page."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    test = fashion_mnist("test", root).select(slice(PICTURES))
    assert test.labels is not None
    x, labels = test.images, test.labels
    path = out / "denoising.csv"
    rows: list[Row] = list(csv.DictReader(path.open())) if path.exists() else []
    known = {(float(row["sigma"]), row["denoiser"]) for row in rows}
    for sigma in SIGMAS:
        for denoise in (False, True):
            if (sigma, str(denoise)) in known:
                continue
            row = {"sigma": str(sigma), "denoiser": str(denoise)}
            row |= one_draw(x, labels, sigma, denoise)
            row |= certified(x[:CERTIFIED], labels[:CERTIFIED], sigma, denoise)
            log.info("%s", row)
            rows.append(row)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, row, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    with torch.no_grad():
        clean = (embedded_classifier()(x).argmax(1) == labels).double().mean().item()
    write_table(rows, clean, out / "denoising.md")


if __name__ == "__main__":
    typer.run(main)
