"""What every detector costs a picture, ours and pytorch-ood's, beside passes of the model."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

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
            found = measured(jobs, len(pixels), rounds)
    return found + vector_costs(found[0].milliseconds, found[1].milliseconds)


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
    return found


def _of_features(model: nn.Module, peer: Peer, images: Tensor) -> Callable[[], object]:
    """A pass of the model that keeps the input of its last layer, and the peer's score of it."""
    return lambda: peer.score(forward_norms(model, images))
