"""Train the discriminator of the joint model, and a classifier with outlier exposure.

python -m benchmarks.train_discriminator --output gradood/data/assets/discriminator.safetensors
python -m benchmarks.train_discriminator --exposed --output exposed.safetensors

With ``--of cifar10 --data FOLDER`` they make ``cifar10-discriminator.safetensors`` and
``cifar10-exposed.safetensors`` of ``benchmarks/checkpoints``, from the public ResNet-20. What there
is is written every 200 steps, so that training can be stopped.
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

from benchmarks.training_sets import TrainingSet, training_set
from gradood.distro import discriminator, discriminator_loss

log = logging.getLogger("gradood")
BATCH, EVERY = 128, 200
EPSILON = 0.01


def batches(
    steps: int, data: TrainingSet, seed: int
) -> Iterator[tuple[float, Tensor, Tensor, Tensor]]:
    """``(share done, normal pictures, their labels, outliers)``, 128 of each kind."""
    generator, outliers = torch.Generator().manual_seed(seed), data.outliers()
    log.info("%d normal pictures, %d outliers", len(data.pixels), len(outliers))
    for step in range(steps):
        rows = torch.randint(len(data.pixels), (BATCH,), generator=generator)
        other = torch.randint(len(outliers), (BATCH,), generator=generator)
        strange = data.vary_outliers(outliers[other], generator)
        images = data.vary(data.pixels[rows], generator)
        yield step / steps, images, data.labels[rows], strange


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
    write: Callable[[int, float], None],
) -> None:
    """Adam with a cosine rate; ``write`` gets the steps that are done, and their seconds."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    start, recent, step = time.process_time(), [], 0
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
        if step % EVERY == 0:
            write(step, time.process_time() - start)
    write(step, time.process_time() - start)


def main(
    output: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    of: Annotated[str, typer.Option(help="The data: fashion-mnist or cifar10.")] = "fashion-mnist",
    exposed: Annotated[bool, typer.Option(help="Fine-tune the classifier instead.")] = False,
    steps: Annotated[int, typer.Option(help="Of 128 normal pictures and 128 outliers.")] = 2000,
    seed: int = 0,
    data: Annotated[Path | None, typer.Option(help="Folder with the files of the set.")] = None,
) -> None:
    """Train one network and write it with its command and seed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    learned = training_set(of, data, seed)
    # Batch statistics stay those of normal pictures.
    network = learned.classifier().eval().requires_grad_(True) if exposed else _untrained(learned)
    options = [part if "/" not in part else Path(part).name for part in sys.argv[1:]]
    command = shlex.join(["python", "-m", "benchmarks.train_discriminator", *options])
    metadata = {"command": command, "seed": str(seed), "torch": torch.__version__}
    if exposed and of == "fashion-mnist":
        metadata |= {"depth": "8", "width": "16", "classes": "10"}  # what load_classifier reads

    def write(done: int, seconds: float) -> None:
        now = {"steps": str(done), "seconds_of_one_core": f"{seconds:.0f}"}
        tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        save_file(tensors, output, metadata | now)

    def loss(done: float, normal: Tensor, labels: Tensor, outliers: Tensor) -> Tensor:
        if exposed:
            return exposure_loss(network, normal, labels, outliers)
        # The box grows over the first half: bounds of an untrained network say nothing.
        return discriminator_loss(network, normal, outliers, EPSILON * min(1.0, 2 * done))

    fit(network, loss, batches(steps, learned, seed), 3e-4 if exposed else 1e-3, write)


def _untrained(data: TrainingSet) -> nn.Module:
    channels, size = data.pixels.shape[1:3]
    return discriminator(data.width, channels=channels, size=size)


if __name__ == "__main__":
    typer.run(main)
