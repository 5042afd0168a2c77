"""The classifiers that the experiments score: trained once, kept under a hash of how.

    python -m benchmarks.experiments.classifiers [--cache DIR] [NAME …]

Trains the named classifiers (all of ``CLASSIFIERS`` by default) that are not in the cache, in the
order of their usefulness: an interrupted run goes on with the next one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import gradood
from benchmarks.datasets.fashion import HELD_OUT
from benchmarks.experiments.vision_transformer import VisionTransformer
from benchmarks.train_classifier import accuracy, load, train
from gradood.data import ResNet, embedded_classifier

log = logging.getLogger("gradood")

#: What tables take means over; other architectures have one of their own.
MAIN = "resnet8"
CACHE = Path.home() / ".cache/gradood/experiments"


@dataclass(frozen=True)
class Classifier:
    """How one classifier is made; the same description gives the same weights on one machine."""

    architecture: str
    seed: int
    held_out: tuple[int, ...] = ()
    epochs: int = 20

    @property
    def name(self) -> str:
        """As tables and the command line name it."""
        without = "-near" if self.held_out else ""
        return f"{self.architecture}{without}-{self.seed}"

    @property
    def committed(self) -> bool:
        """Whether it is the one inside the package."""
        return (self.architecture, self.seed, self.held_out) == ("resnet8", 0, ())

    def build(self) -> nn.Module:
        """The network with its initial weights."""
        torch.manual_seed(self.seed)
        classes = 10 - len(self.held_out)
        if self.architecture == "vit":
            return VisionTransformer(classes)
        return ResNet(int(self.architecture.removeprefix("resnet")), classes=classes)

    def path(self, cache: Path) -> Path:
        """Where its weights are kept."""
        described = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(described.encode()).hexdigest()[:12]
        return cache / "classifiers" / f"{self.name}-{digest}.safetensors"

    def ready(self, cache: Path) -> bool:
        """Whether it need not be trained any more."""
        return self.committed or self.path(cache).exists()

    def metadata(self, cache: Path) -> dict[str, str]:
        """What is written in its file: epochs, test_accuracy in percent (float32), and more."""
        embedded = Path(gradood.__file__).parent / "data/assets/classifier.safetensors"
        with safe_open(embedded if self.committed else self.path(cache), "pt") as file:
            found: dict[str, str] = file.metadata()
        return found

    def load(self, cache: Path) -> nn.Module:
        """The trained network in eval mode."""
        if self.committed:
            return embedded_classifier()
        network = self.build()
        network.load_state_dict(load_file(self.path(cache)))
        return network.eval()


#: In the order of training: most useful first.
CLASSIFIERS = (
    Classifier("resnet8", 0),
    Classifier("resnet8", 1),
    Classifier("resnet8", 2),
    *(Classifier("resnet8", seed, HELD_OUT) for seed in range(3)),
    *(Classifier("resnet20", seed, epochs=8) for seed in range(3)),
    Classifier("vit", 0, epochs=10),
)


def prepare(one: Classifier, cache: Path, root: Path | None = None) -> None:
    """Train a classifier unless that was done before."""
    if one.ready(cache):
        return
    network, held_out = one.build(), list(one.held_out)
    start = time.monotonic()
    train(network, load("train", root, held_out), None, one.epochs, one.seed)
    reached = accuracy(network, load("test", root, held_out))
    seconds = time.monotonic() - start
    metadata = {"test_accuracy": f"{reached:.2f}", "torch": torch.__version__}
    path = one.path(cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata | {k: str(v) for k, v in asdict(one).items()})
    partial.replace(path)
    log.info("%s: float32 test accuracy %.2f %%, %.0f s", one.name, reached, seconds)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Such as resnet8-1.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder for what is computed.")] = CACHE,
    root: Annotated[Path | None, typer.Option(help="Folder with the Fashion-MNIST files.")] = None,
) -> None:
    """Train what is not there yet."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    for one in CLASSIFIERS:
        if not names or one.name in names:
            prepare(one, cache, root)


if __name__ == "__main__":
    typer.run(main)
