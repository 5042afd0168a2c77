"""pytorch-ood's detectors that read feature maps, lists of modules, or pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.experiments.observations import Observer
from benchmarks.experiments.peers import seeded, why

log = logging.getLogger("gradood")

BATCH = 128
#: Other settings, other scores: what is kept counts for these.
SETTINGS = "seeded; NACUE of every stage"
#: Before the name of a peer, in place of whose scores there are the bytes of a reason.
_FAILED = "failed: "


class Pieces(NamedTuple):
    """A classifier as a chain: layers that make feature maps, and what makes logits of the last."""

    layers: list[nn.Module]
    head: nn.Module


class _Stem(nn.Module):
    """What a residual network does before its first stage."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = [model]  # not a child: its parameters are the model's

    def forward(self, x: Tensor) -> Tensor:
        model = self._model[0]
        if hasattr(model, "normalise"):
            out: Tensor = model.relu(model.norm(model.conv(model.normalise(x))))
        else:
            out = torch.relu(model.bn1(model.conv1((x - model.mean) / model.std)))
        return out


def pieces_of(model: Any) -> Pieces | None:
    """Those of the residual networks here; None for another network."""
    names = ("stage1", "stage2", "stage3") if hasattr(model, "stage1") else None
    names = ("layer1", "layer2", "layer3") if hasattr(model, "layer1") else names
    if names is None:
        return None
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.linear)
    return Pieces([_Stem(model), *(getattr(model, name) for name in names)], head.eval())


class PicturePeers:
    """All of them, fitted on the same pictures; ``failed`` names those that do not run, and why."""

    def __init__(
        self, observer: Observer, fit: Tensor, labels: Tensor, without: Collection[str] = ()
    ) -> None:
        self._observer, self._fit, self._labels, self._without = observer, fit, labels, without
        self.failed: dict[str, str] = {}
        self._predict: dict[str, Callable[[Tensor, list[Tensor], Tensor], Tensor]] | None = None

    def peers(self) -> dict[str, PicturePeer]:
        """By the name in tables: those that run on a few pictures."""
        scored = self.scores(self._fit[:8]) if self._builders() else {}
        return {f"pytorch-ood {name}": PicturePeer(self, name) for name in scored}

    def scores(self, pixels: Tensor) -> dict[str, Tensor]:
        """Every peer's scores of uint8 pictures, one pass for all that read feature maps."""
        names = " ".join([SETTINGS, *(name for name, _ in self._builders())])
        key = [names.encode(), *(t.numpy().tobytes() for t in (self._fit, pixels))]
        found = self._observer.kept(key, partial(self._score, pixels))
        for name in [name for name in found if name.startswith(_FAILED)]:
            self.failed[name.removeprefix(_FAILED)] = bytes(found.pop(name).tolist()).decode()
        return found

    def predictors(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """By name, each with passes of its own: images ``[N, C, H, W]`` -> scores."""
        pieces = pieces_of(self._observer.model)
        assert pieces is not None

        def alone(predict: Callable[..., Tensor], x: Tensor) -> Tensor:
            maps = _maps(pieces, x)
            with torch.no_grad():
                logits = pieces.head(maps[-1])
            return predict(x, maps, logits)

        return {name: partial(alone, predict) for name, predict in self._fitted().items()}

    def _score(self, pixels: Tensor) -> dict[str, Tensor]:
        if self._predict is None:
            self._predict = self._fitted()
        pieces = pieces_of(self._observer.model)
        assert pieces is not None
        found: dict[str, list[Tensor]] = {name: [] for name in self._predict}
        for batch in torch.split(pixels, BATCH):
            x = batch.float() / 255
            maps = _maps(pieces, x)
            with torch.no_grad():
                logits = pieces.head(maps[-1])
            for name, predict in self._predict.items():
                found[name].append(torch.as_tensor(predict(x, maps, logits)).detach().float())
        # Kept beside the scores, so that an interrupted run still knows why.
        failed = {_FAILED + name: _as_bytes(reason) for name, reason in self.failed.items()}
        return failed | {name: torch.cat(parts) for name, parts in found.items()}

    def _fitted(self) -> dict[str, Callable[[Tensor, list[Tensor], Tensor], Tensor]]:
        found = {}
        x, probe = self._fit[:4].float() / 255, pieces_of(self._observer.model)
        assert probe is not None
        maps = _maps(probe, x)
        for name, build in self._builders():
            try:
                with seeded():
                    predict = build()
                predict(x, maps, probe.head(maps[-1]).detach())
            except Exception as error:  # whatever another package raises is a reason
                reason = why(error)
                self.failed[f"pytorch-ood {name}"] = reason
                log.info("pytorch-ood %s does not run here: %s", name, reason)
            else:
                found[name] = predict
        return found

    def _builders(self) -> list[tuple[str, Callable[[], Any]]]:
        from pytorch_ood import detector as d

        model, pieces = self._observer.model, pieces_of(self._observer.model)
        if pieces is None:
            return []
        maps_of = nn.Sequential(*pieces.layers)

        def of_maps(kind: Any, **options: Any) -> Any:
            detector = kind(maps_of, pieces.head, **options)
            if hasattr(detector, "fit_feature_maps"):
                detector.fit_feature_maps(self._fit_maps(pieces), self._labels)
            return lambda x, maps, logits: detector.predict_feature_maps(maps[-1])

        def gram() -> Any:
            detector = d.Gram(pieces.head, pieces.layers, int(self._labels.max()) + 1)
            detector.fit(self._loader())
            return lambda x, maps, logits: detector.predict_structured(logits, maps)

        def mahalanobis() -> Any:
            detector = d.MultiMahalanobis(pieces.layers)
            means = [_maps(pieces, b, mean=True) for b, _ in self._loader()]
            layers = [torch.cat(parts) for parts in zip(*means, strict=True)]
            detector.fit_structured(layers, self._labels)
            return lambda x, maps, logits: detector.predict_structured(
                [one.mean((2, 3)) for one in maps]
            )

        def nac() -> Any:
            # Every stage, as its documentation has it.
            detector = d.NACUE(model, layers=pieces.layers[1:]).fit(self._loader())
            return lambda x, maps, logits: detector.predict(x)

        def of_pictures(kind: Any) -> Any:
            detector = kind(model)
            return lambda x, maps, logits: detector.predict(x)

        found = [
            *((name, partial(of_maps, getattr(d, name))) for name in ("ReAct", "VRA", "SCALE")),
            *((name, partial(of_maps, getattr(d, name))) for name in ("ASH", "RankFeat")),
            ("Gram", gram),
            ("MultiMahalanobis", mahalanobis),
            ("NACUE", nac),
            ("ODIN", partial(of_pictures, d.ODIN)),
        ]
        return [one for one in found if f"pytorch-ood {one[0]}" not in self._without]

    def _loader(self) -> Any:
        return DataLoader(TensorDataset(self._fit.float() / 255, self._labels), batch_size=BATCH)

    def _fit_maps(self, pieces: Pieces) -> Tensor:
        return torch.cat([_maps(pieces, x)[-1] for x, _ in self._loader()])


class PicturePeer(NamedTuple):
    """One of them; scores uint8 pictures."""

    peers: PicturePeers
    name: str

    def score(self, pixels: Tensor) -> Tensor:
        """Scores ``[N]``, higher = more anomalous."""
        return self.peers.scores(pixels)[self.name]


def _as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@torch.no_grad()
def _maps(pieces: Pieces, x: Tensor, mean: bool = False) -> list[Tensor]:
    found = []
    for layer in pieces.layers:
        x = layer(x)
        found.append(x.mean((2, 3)) if mean else x)
    return found
