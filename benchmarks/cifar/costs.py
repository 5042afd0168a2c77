"""What every detector costs a picture, ours and pytorch-ood's, beside passes of the model."""

from __future__ import annotations

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
from gradood.gradients import forward_norms


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


def _of_features(model: nn.Module, peer: Peer, images: Tensor) -> Callable[[], object]:
    """A pass of the model that keeps the input of its last layer, and the peer's score of it."""
    return lambda: peer.score(forward_norms(model, images))
