"""Gradient norms, logits and penultimate features of picture sets, kept under a hash of content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradood.gradients import GradientNorms, gradient_norms

BATCH = 128
#: Raise it when norms come out otherwise than before: what is kept then counts for nothing.
VERSION = 1

#: What norms are taken of: labels and losses, one backward pass each.
KINDS: dict[str, tuple[list[str], str]] = {
    "all-hot": (["all_hot"], "bce"),
    "CE-uniform": (["uniform"], "ce"),
    "predicted logit": (["predicted"], "logit"),
    "half of the logits": (["k_hot:5"], "logit"),
    "sum of the logits": (["all_hot"], "logit"),
    "5-hot": (["k_hot:5"], "bce"),
    "every logit": ([], "logit"),
    "every one-hot": ([], "bce"),
}
BF16 = "all-hot, bf16"


def digest(parts: Iterable[bytes]) -> str:
    """A name for content: the lengths too, or two lists could be the same bytes."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


class Observer:
    """Computes what detectors read of one classifier, once."""

    def __init__(self, model: nn.Module, classes: int, cache: Path) -> None:
        self.model, self.classes, self.folder = model, classes, cache / "observations"
        weights = [t.numpy().tobytes() for t in model.state_dict().values()]
        self._base = digest([f"{VERSION} {torch.__version__} {BATCH}".encode(), *weights]).encode()
        self._names = tuple(name for name, _ in model.named_parameters())

    def norms(self, images: Tensor, *kinds: str) -> GradientNorms:
        """Norms ``[N, K, L]`` under all labels of the kinds, of uint8 or float images."""
        parts = [self._one(images, kind) for kind in kinds]
        values = torch.cat([part.values for part in parts], 1)
        return GradientNorms(values, self._names, parts[0].logits, parts[0].features)

    def kept(
        self, key: Iterable[bytes], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors computed once for this classifier and key."""
        path = self.folder / f"{digest([self._base, *key])}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            found = {name: t.contiguous() for name, t in compute().items()}
            partial = path.with_suffix(".partial")
            save_file(found, partial)
            partial.replace(path)
        return load_file(path)

    def _one(self, images: Tensor, kind: str) -> GradientNorms:
        key = [kind.encode(), str(images.dtype).encode(), images.numpy().tobytes()]
        stored = self.kept(key, lambda: self._compute(images, kind))
        return GradientNorms(stored["values"], self._names, stored["logits"], stored["features"])

    def _compute(self, images: Tensor, kind: str) -> dict[str, Tensor]:
        labels, loss = KINDS["all-hot" if kind == BF16 else kind]
        labels = labels or [f"one_hot:{c}" for c in range(self.classes)]
        parts = []
        for batch in torch.split(images, BATCH):
            batch = batch.float() / 255 if batch.dtype == torch.uint8 else batch
            with torch.autocast("cpu", torch.bfloat16, enabled=kind == BF16):
                parts.append(gradient_norms(self.model, batch, labels, loss))
        whole = GradientNorms.join(parts)
        assert whole.features is not None
        return {
            "values": whole.values,
            "logits": whole.logits.float(),
            "features": whole.features.float(),
        }
