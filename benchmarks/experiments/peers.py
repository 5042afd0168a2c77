"""pytorch-ood's detectors on the same penultimate features and logits.

Those that need feature maps, lists of modules or pictures are in ``picture_peers``. Left out of its
detectors: MCD, which needs dropout, MCM, which needs texts, WeightedEBO, which learns its weights
from anomalies, and GradUncertainty and GradNorm, which are ``gradood``'s own as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradood.gradients import GradientNorms

log = logging.getLogger("gradood")


def _builders(head: nn.Linear) -> dict[str, Callable[[], Any]]:
    """Every detector that reads logits or penultimate features, with its default settings."""
    from pytorch_ood import detector as d

    weight, bias = head.weight.detach(), head.bias.detach()
    return {
        "OpenMax": lambda: d.OpenMax(None),
        "MaxSoftmax": lambda: d.MaxSoftmax(None),
        "MaxLogit": lambda: d.MaxLogit(None),
        "Energy": lambda: d.EnergyBased(None),
        "Entropy": lambda: d.Entropy(None),
        "GEN": lambda: d.GEN(None),
        "KLMatching": lambda: d.KLMatching(None),
        "TemperatureScaling": lambda: d.TemperatureScaling(None),
        "DICE": lambda: d.DICE(None, weight, bias, p=0.7),
        "fDBD": lambda: d.fDBD(None, head),
        "GMM": lambda: d.GMM(None),
        "KNN": lambda: d.KNN(None),
        "LTS": lambda: d.LTS(None, head),
        "Mahalanobis": lambda: d.Mahalanobis(None),
        "NCI": lambda: d.NCI(None, head),
        "NNGuide": lambda: d.NNGuide(None, head),
        "PNML": lambda: d.PNML(None, head),
        "RMD": lambda: d.RMD(None),
        "SHE": lambda: d.SHE(None, head),
        "ViM": lambda: d.ViM(None, head.in_features // 2, weight, bias),
    }


class Peer:
    """One of pytorch-ood's detectors, fitted; scores ``GradientNorms`` by what came with them."""

    def __init__(self, detector: Any, fit: GradientNorms, labels: Tensor) -> None:
        self._detector = detector
        self._logits = not hasattr(detector, "predict_features")
        if self._logits and hasattr(detector, "fit_logits"):
            detector.fit_logits(fit.logits, labels)
        elif hasattr(detector, "fit_features"):
            detector.fit_features(fit.logits if self._logits else fit.features, labels)

    def score(self, norms: GradientNorms) -> Tensor:
        """Scores ``[N]``, higher = more anomalous."""
        detector = self._detector
        if self._logits:
            return torch.as_tensor(detector.predict_logits(norms.logits)).detach()
        return torch.as_tensor(detector.predict_features(norms.features)).detach()


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers whenever a peer is built: Gram draws the pictures it holds back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def why(error: Exception) -> str:
    """Kind and first line of an error, as tables name it."""
    said = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {said[0][:150]}"


def fitted_peers(
    head: nn.Linear,
    fit: GradientNorms,
    labels: Tensor,
    without: Collection[str] = (),
    failed: dict[str, str] | None = None,
) -> dict[str, Peer]:
    """Those that run, but for some names; ``failed`` and the log say why the others do not."""
    found = {}
    for name, build in _builders(head).items():
        if f"pytorch-ood {name}" in without:
            continue
        try:
            with seeded():
                peer = Peer(build(), fit, labels)
            peer.score(fit.select(slice(None, 4)))
        except Exception as error:  # whatever another package raises is a reason, not a failure
            reason = why(error)
            log.info("pytorch-ood %s does not run here: %s", name, reason)
            if failed is not None:
                failed[f"pytorch-ood {name}"] = reason
        else:
            found[f"pytorch-ood {name}"] = peer
    return found
