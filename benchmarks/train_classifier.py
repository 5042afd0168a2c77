"""Train a Fashion-MNIST classifier and write it, with how it was made, as safetensors.

python benchmarks/train_classifier.py --output gradood/data/assets/classifier.safetensors
"""

import logging
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.datasets.fashion import fashion_mnist, relabelled, split_by_class
from gradood.data.image_set import ImageSet
from gradood.data.networks import ResNet

log = logging.getLogger("gradood")
BATCH = 256
SHIFT = 2


def load(split: str, root: Path | None, held_out: list[int]) -> ImageSet:
    """The pictures of the classes that are trained on, numbered from 0."""
    return relabelled(split_by_class(fashion_mnist(split, root), held_out)[0])


def augmented_batches(
    data: ImageSet, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled, mirrored and shifted (up to 2 pixels) batches; the rest is dropped."""
    assert data.labels is not None
    padded = F.pad(data.pixels[:, 0], (SHIFT,) * 4)
    windows = padded.unfold(1, 28, 1).unfold(2, 28, 1)  # a view [N, 5, 5, 28, 28], no copies
    order = torch.randperm(len(data), generator=generator)
    for rows in torch.split(order[: len(data) // BATCH * BATCH], BATCH):
        down, right = torch.randint(2 * SHIFT + 1, (2, BATCH), generator=generator)
        images = windows[rows, down, right]
        mirrored = torch.rand(BATCH, generator=generator) < 0.5
        images[mirrored] = images[mirrored].flip(-1)
        yield images.unsqueeze(1).float() / 255, data.labels[rows]


@torch.no_grad()
def accuracy(network: nn.Module, data: ImageSet) -> float:
    """Share of right predictions in float32 and eval mode, in percent."""
    assert data.labels is not None
    network.eval()
    predicted = torch.cat([network(images).argmax(1) for images in torch.split(data.images, 500)])
    return 100 * (predicted == data.labels).double().mean().item()


def train(
    network: nn.Module, data: ImageSet, test: ImageSet | None, epochs: int, seed: int
) -> None:
    """One-cycle SGD under bfloat16 autocast; AdamW in float32 for what is no ``ResNet``.

    A small transformer is half as fast in bfloat16: its products are short. Reports the accuracy on
    ``test``, if given, after every epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    network.to(memory_format=torch.channels_last)
    optimizer: torch.optim.Optimizer
    convolutional = isinstance(network, ResNet)
    if convolutional:
        rate = 0.3
        optimizer = torch.optim.SGD(
            network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
    else:
        rate = 2e-3
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=rate,
        total_steps=epochs * (len(data) // BATCH),
        pct_start=0.2,
        anneal_strategy="linear",
    )
    for epoch in range(epochs):
        start = time.monotonic()
        network.train()
        for images, labels in augmented_batches(data, generator):
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=convolutional):
                loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        seconds = time.monotonic() - start
        reached = "" if test is None else f", test accuracy {accuracy(network, test):.2f} %"
        log.info(
            "epoch %d/%d: loss %.3f%s, %.0f s", epoch + 1, epochs, loss.item(), reached, seconds
        )


def main(
    output: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    depth: Annotated[int, typer.Option(help="8, 14, 20, …")] = 8,
    width: Annotated[int, typer.Option(help="Channels of the first stage.")] = 16,
    epochs: int = 20,
    seed: int = 0,
    held_out: Annotated[str, typer.Option(help="Classes to leave out, such as 3,7,8.")] = "",
    root: Annotated[Path | None, typer.Option(help="Folder with the Fashion-MNIST files.")] = None,
    threads: Annotated[int, typer.Option(help="torch.set_num_threads")] = 1,
) -> None:
    """Train one classifier and write it with its command, seed and test accuracy."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    left_out = [int(c) for c in held_out.split(",") if c]
    data, test = load("train", root, left_out), load("test", root, left_out)
    network = ResNet(depth, width=width, classes=10 - len(left_out))
    start = time.monotonic()
    train(network, data, test, epochs, seed)
    result = accuracy(network, test)
    # The paths are of no use to a reader, and may say whose machine it was.
    options = [part if "/" not in part else Path(part).name for part in sys.argv[1:]]
    metadata = {
        "command": shlex.join(["python", "benchmarks/train_classifier.py", *options]),
        "depth": depth,
        "width": width,
        "classes": network.classes,
        "held_out": ",".join(map(str, left_out)),
        "epochs": epochs,
        "seed": seed,
        "test_accuracy": f"{result:.2f}",
        "torch": torch.__version__,
    }
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, output, {key: str(value) for key, value in metadata.items()})
    log.info("%s: float32 test accuracy %.2f %%, %.0f s", output, result, time.monotonic() - start)


if __name__ == "__main__":
    typer.run(main)
