"""Every detector that needs no anomalies, ours and pytorch-ood's, fitted on the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

import gradood
from benchmarks.experiments.observations import COPIES, Observer
from benchmarks.experiments.peers import fitted_peers
from benchmarks.experiments.picture_peers import PicturePeers
from gradood.data import ImageSet
from gradood.detectors import (
    Energy,
    ExGrad,
    GradientDetector,
    GradientGMM,
    GradientKNN,
    GradientMahalanobis,
    GradNorm,
    MaxSoftmax,
)


class Scores(Protocol):
    """Anything fitted that scores norms, or uint8 pictures."""

    def score(self, x: Any) -> Tensor: ...


#: A fitted detector after the kinds of norms that it reads; None where it reads pictures.
Fitted = tuple[tuple[str, ...] | None, Scores]


class Case(NamedTuple):
    """A detector that needs no anomalies, and the kinds of norms that it reads."""

    kinds: tuple[str, ...]
    build: Callable[[nn.Module, int], Any]


#: By the name in tables.
UNSUPERVISED = {
    'GradientDetector "forward"': Case((), lambda m, s: GradientDetector(m, "forward")),
    'GradientDetector "fast"': Case(("all-hot",), lambda m, s: GradientDetector(m)),
    'GradientDetector "adversarial"': Case(
        (COPIES,), lambda m, s: GradientDetector(m, "adversarial")
    ),
    "GradientKNN": Case(("all-hot",), lambda m, s: GradientKNN(m)),
    "GradientMahalanobis": Case(("all-hot",), lambda m, s: GradientMahalanobis(m)),
    "GradientGMM": Case(("all-hot",), lambda m, s: GradientGMM(m, seed=s)),
    "MaxSoftmax": Case(("all-hot",), lambda m, s: MaxSoftmax(m)),
    "Energy": Case(("all-hot",), lambda m, s: Energy(m)),
    "GradNorm": Case(("all-hot",), lambda m, s: GradNorm(m)),
    "ExGrad": Case(("all-hot",), lambda m, s: ExGrad(m)),
}


def own_detectors(
    observer: Observer,
    fit: ImageSet,
    kinds: Collection[str],
    seed: int,
    without: Collection[str] = (),
) -> dict[str, Fitted]:
    """Ours that need no other kinds of norms, but for some names."""
    found: dict[str, Fitted] = {}
    for name, case in UNSUPERVISED.items():
        if name not in without and set(case.kinds) <= {*kinds, COPIES}:
            detector = case.build(observer.model, seed)
            found[name] = case.kinds, detector.fit(observer.norms(fit.pixels, *case.kinds))
    return found


def peer_detectors(
    observer: Observer,
    fit: ImageSet,
    pictures: bool,
    without: Collection[str],
    failed: dict[str, str],
) -> dict[str, Fitted]:
    """pytorch-ood's that run; ``failed`` is told of the others.

    ``pictures``: with those that read pictures.
    """
    norms, head = observer.norms(fit.pixels), observer.model.linear
    assert fit.labels is not None and isinstance(head, nn.Linear)
    labels = torch.unique(fit.labels, return_inverse=True)[1]
    fitted = fitted_peers(head, norms, labels, without, failed)
    found: dict[str, Fitted] = {name: ((), peer) for name, peer in fitted.items()}
    if pictures:
        readers = PicturePeers(observer, fit.pixels, labels, without)
        found |= {name: (None, peer) for name, peer in readers.peers().items()}
        failed |= readers.failed
    return found


def code_of(peers: bool) -> list[Path]:
    """The files that scores of pytorch-ood's detectors, or else of ours, depend on."""
    here = Path(__file__).parent
    if peers:
        return [here / name for name in ("fitted.py", "peers.py", "picture_peers.py")]
    own = Path(gradood.__file__).parent.glob("detectors/*.py")
    return [here / "fitted.py", *sorted(own)]
