"""What every detector costs a picture, ours and pytorch-ood's, beside passes of the model.

    OMP_NUM_THREADS=1 python -m benchmarks.cifar.costs FOLDER OUTPUT [--no-peers]

Writes ``cifar_cost.csv`` at OUTPUT; ``python -m benchmarks.cifar`` does so itself where there is
none.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from benchmarks.cifar.network import load_network
from benchmarks.datasets import picture_set
from benchmarks.experiments.cost import Cost, detector_jobs, measured
from benchmarks.experiments.observations import Observer
from benchmarks.experiments.peers import Peer, fitted_peers
from benchmarks.experiments.picture_peers import PicturePeers
from gradood.data import ImageSet
from gradood.detectors.neighbours import DIRECTIONS
from gradood.detectors.relative import RELATIVE
from gradood.gradients import forward_norms

#: How many vectors of how many features.
VECTORS = (50_000, 500)
ROUNDS = 7


def measure(
    data: Annotated[Path, typer.Argument(help="Folder with the sets and weights/.")],
    output: Annotated[Path, typer.Argument(help="The file to write.")],
    peers: Annotated[bool, typer.Option(help="pytorch-ood's detectors, too.")] = True,
    rounds: Annotated[int, typer.Option(help="Of which the medians are taken.")] = ROUNDS,
) -> None:
    """Measure ResNet-20 on batches of 128, and write what it was."""
    torch.set_num_threads(1)
    model = load_network(data / "weights/cifar10-resnet20.safetensors")
    train = picture_set("cifar10-train", data).sample(1000)
    images = picture_set("cifar10-test", data).sample(128).pixels
    found = (
        peer_costs(model, train, images, rounds)
        if peers
        else own_costs(model, train, images, rounds)
    )
    found += vector_costs(found[0].milliseconds, found[1].milliseconds)
    with output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Cost._fields)
        writer.writerows([[c.what, *(f"{v:.4f}" for v in c[1:])] for c in found])


def read(path: Path) -> list[Cost]:
    """What ``measure`` wrote."""
    with path.open(newline="") as file:
        return [Cost(row.pop("what"), *map(float, row.values())) for row in csv.DictReader(file)]


def own_costs(model: nn.Module, fit: ImageSet, pixels: Tensor, rounds: int) -> list[Cost]:
    """Processor time a picture of our detectors."""
    jobs = detector_jobs(model, fit.images, pixels.float() / 255)
    return measured(jobs, len(pixels), rounds)


def peer_costs(model: nn.Module, fit: ImageSet, pixels: Tensor, rounds: int) -> list[Cost]:
    """Processor time a picture of everything, measured in one run."""
    images = pixels.float() / 255
    assert fit.labels is not None and isinstance(model.linear, nn.Linear)
    with torch.enable_grad():
        jobs = detector_jobs(model, fit.images, images)
        norms = forward_norms(model, fit.images)
        for name, peer in fitted_peers(model.linear, norms, fit.labels).items():
            jobs[name] = _of_features(model, peer, images)
        with TemporaryDirectory() as folder:
            readers = PicturePeers(Observer(model, 10, Path(folder)), fit.pixels, fit.labels)
            for name, predict in readers.predictors().items():
                jobs[f"pytorch-ood {name}"] = partial(predict, images)
            return measured(jobs, len(pixels), rounds)


def vector_costs(forward: float, step: float) -> list[Cost]:
    """Fit and score of many wide vectors, a vector, beside a pass that takes so many ms a picture.

    Once: a part of them is as good as the whole to score, and repeats would take minutes.
    """
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(*VECTORS, generator=generator)
    classes = torch.randint(10, VECTORS[:1], generator=generator)
    found = []
    for name, novelty in {"directions": DIRECTIONS, "relative": RELATIVE}.items():
        begin = time.process_time()
        learned = novelty.fit(vectors.double(), classes)
        fitted = time.process_time()
        floats = {k: t.float() if t.is_floating_point() else t for k, t in learned.items()}
        novelty.score(vectors[: VECTORS[0] // 10], classes[: VECTORS[0] // 10], floats)
        scored = time.process_time()
        for what, seconds in (("fit", fitted - begin), ("score", 10 * (scored - fitted))):
            each = 1000 * seconds / VECTORS[0]
            found.append(Cost(f"vectors: {name}, {what}", each, each / forward, each / step))
    together = (sum(values) for values in zip(*(cost[1:] for cost in found), strict=True))
    return [*found, Cost("vectors: all four together", *together)]


def _of_features(model: nn.Module, peer: Peer, images: Tensor) -> Callable[[], object]:
    """A pass of the model that keeps the input of its last layer, and the peer's score of it."""
    return lambda: peer.score(forward_norms(model, images))


if __name__ == "__main__":
    typer.run(measure)
