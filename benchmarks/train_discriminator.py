"""Train the discriminator of the joint model, and a classifier with outlier exposure.

python benchmarks/train_discriminator.py --output gradood/data/assets/discriminator.safetensors
python benchmarks/train_discriminator.py --exposed --output exposed.safetensors
"""

import logging
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.datasets import fashion_mnist
from benchmarks.datasets.outliers import augmented, foreign_glyphs, textures
from gradood.data import embedded_classifier
from gradood.distro import discriminator, discriminator_loss

log = logging.getLogger("gradood")
BATCH = 128
EPSILON = 0.01


def batches(
    steps: int, root: Path | None, seed: int
) -> Iterator[tuple[float, Tensor, Tensor, Tensor]]:
    """``(share done, normal pictures, their labels, outliers)``, 128 of each kind."""
    generator = torch.Generator().manual_seed(seed)
    normal = fashion_mnist("train", root)
    assert normal.labels is not None
    outliers = torch.cat([foreign_glyphs(seed=seed).pixels, textures(seed=seed).pixels])
    log.info("%d normal pictures, %d outliers", len(normal), len(outliers))
    for step in range(steps):
        rows = torch.randint(len(normal), (BATCH,), generator=generator)
        other = torch.randint(len(outliers), (BATCH,), generator=generator)
        images = normal.pixels[rows].float() / 255
        yield step / steps, images, normal.labels[rows], augmented(outliers[other], generator)


def exposure_loss(model: nn.Module, normal: Tensor, labels: Tensor, outliers: Tensor) -> Tensor:
    """Cross-entropy, and half of that to the uniform distribution on outliers (Hendrycks 2019)."""
    logits, other = model(torch.cat([normal, outliers])).split(BATCH)
    uniform = (other.logsumexp(1) - other.mean(1)).mean()
    return F.cross_entropy(logits, labels) + 0.5 * uniform


def fit(
    network: nn.Module,
    loss_of: Callable[[float, Tensor, Tensor, Tensor], Tensor],
    data: Iterator[tuple[float, Tensor, Tensor, Tensor]],
    rate: float,
) -> None:
    """Adam with a cosine rate."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    start, recent = time.process_time(), []
    for step, (done, normal, labels, outliers) in enumerate(data, 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * done))
        loss = loss_of(done, normal, labels, outliers)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        recent.append(loss.item())
        if step % 100 == 0:
            seconds = time.process_time() - start
            log.info("step %d: loss %.4f, %.0f s of one core", step, sum(recent) / 100, seconds)
            recent = []


def main(
    output: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    exposed: Annotated[bool, typer.Option(help="Fine-tune the classifier instead.")] = False,
    steps: Annotated[int, typer.Option(help="Of 128 normal pictures and 128 outliers.")] = 2000,
    seed: int = 0,
    root: Annotated[Path | None, typer.Option(help="Folder with the Fashion-MNIST files.")] = None,
) -> None:
    """Train one network and write it with its command and seed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    data = batches(steps, root, seed)
    if exposed:
        # Batch statistics stay those of normal pictures.
        network: nn.Module = embedded_classifier().eval().requires_grad_(True)
        fit(network, lambda _, *batch: exposure_loss(network, *batch), data, 3e-4)
    else:
        network = discriminator()
        # The box grows over the first half: bounds of an untrained network say nothing.
        fit(
            network,
            lambda done, x, _, other: discriminator_loss(
                network, x, other, EPSILON * min(1.0, 2 * done)
            ),
            data,
            1e-3,
        )
    options = [part if "/" not in part else Path(part).name for part in sys.argv[1:]]
    command = shlex.join(["python", "benchmarks/train_discriminator.py", *options])
    metadata = {"command": command, "seed": str(seed), "torch": torch.__version__}
    if exposed:
        metadata |= {"depth": "8", "width": "16", "classes": "10"}
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, output, metadata)


if __name__ == "__main__":
    typer.run(main)
