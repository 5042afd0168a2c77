"""What detectors read of picture sets, kept under a hash of content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradood.detectors.copies import copied_logits
from gradood.gradients import GradientNorms, forward_norms, gradient_norms

BATCH = 128
#: Raise it when norms come out otherwise than before: what is kept then counts for nothing.
VERSION = 2

#: What norms are taken of: labels for a model of so many classes, and a loss; one backward pass a
#: label.
KINDS: dict[str, tuple[Callable[[int], list[str]], str]] = {
    "all-hot": (lambda classes: ["all_hot"], "bce"),
    "CE-uniform": (lambda classes: ["uniform"], "ce"),
    "half of the logits": (lambda classes: [f"k_hot:{classes // 2}"], "logit"),
    "zero-hot": (lambda classes: ["zero_hot"], "bce"),
    "2-hot": (lambda classes: ["k_hot:2"], "bce"),
    "5-hot": (lambda classes: ["k_hot:5"], "bce"),
    "sum of the logits": (lambda classes: ["all_hot"], "logit"),
    "every logit": (lambda classes: [f"one_hot:{c}" for c in range(classes)], "logit"),
    "every one-hot": (lambda classes: [f"one_hot:{c}" for c in range(classes)], "bce"),
}
#: What supervised detectors read of their training pictures.
KNOWN = ("all-hot", "CE-uniform")
#: What every picture that is scored is observed under.
SCORED = (*KNOWN, "half of the logits", "every logit")
#: Rows of "every logit".
PREDICTED = "predicted logit"
BF16 = "all-hot, bf16"
#: Beside the norms: logits, features and activations; and logits of changed copies.
OUTPUTS, COPIES = "outputs", "changed copies"


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
        if COPIES in kinds:
            others = [kind for kind in kinds if kind != COPIES]
            return replace(self.norms(images, *others), copies=self._copies(images))
        self._observe(images, ["every logit" if kind == PREDICTED else kind for kind in kinds])
        outputs = self._outputs(images, BF16 in kinds)
        values = [self._values(images, kind, outputs.logits) for kind in kinds]
        return replace(outputs, values=torch.cat(values, 1)) if values else outputs

    def observe(self, sets: Iterable[Tensor], kinds: tuple[str, ...] = SCORED) -> None:
        """Keep what the page reads of these images, one forward pass for all kinds."""
        for images in sets:
            self._observe(images, kinds)

    def kept(
        self, key: Iterable[bytes], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors computed once for this classifier and key."""
        path = self._path(key)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            found = {name: t.contiguous() for name, t in compute().items()}
            partial = path.with_suffix(".partial")
            save_file(found, partial)
            partial.replace(path)
        return load_file(path)

    def _path(self, key: Iterable[bytes]) -> Path:
        return self.folder / f"{digest([self._base, *key])}.safetensors"

    def _outputs(self, images: Tensor, bf16: bool) -> GradientNorms:
        stored = load_file(self._path(_key(images, _outputs_of(bf16))))
        counts = tuple(stored.pop("counts").tolist())
        places = tuple(map(str, range(len(counts))))
        values = stored["logits"].new_zeros(len(images), 0, len(self._names))
        return GradientNorms(
            **stored,
            values=values,
            names=self._names,
            activation_names=places,
            channel_counts=counts,
        )

    @torch.no_grad()
    def _copies(self, images: Tensor) -> Tensor:
        def compute() -> dict[str, Tensor]:
            found = [copied_logits(self.model, as_floats(b)) for b in torch.split(images, BATCH)]
            return {COPIES: torch.cat([one for one in found if one is not None])}

        return self.kept(_key(images, COPIES), compute)[COPIES]

    def _values(self, images: Tensor, kind: str, logits: Tensor) -> Tensor:
        if kind == PREDICTED:
            every = self._values(images, "every logit", logits)
            return torch.take_along_dim(every, logits.argmax(1)[:, None, None], 1)
        return load_file(self._path(_key(images, kind)))["values"]

    def _observe(self, images: Tensor, kinds: Iterable[str]) -> None:
        """Compute what is not kept, all of it in one forward pass."""
        wanted = dict.fromkeys(kinds)
        for bf16 in (False, True):
            here = [kind for kind in wanted if (kind == BF16) == bf16]
            outputs = [] if bf16 and not here else [_outputs_of(bf16)]
            missing = [k for k in (*here, *outputs) if not self._path(_key(images, k)).exists()]
            if not missing:
                continue
            computed = self._compute(images, [k for k in missing if k in wanted], bf16)
            for kind in missing:
                self.kept(_key(images, kind), partial(computed.__getitem__, kind))

    def _compute(
        self, images: Tensor, kinds: list[str], bf16: bool
    ) -> dict[str, dict[str, Tensor]]:
        found = [KINDS["all-hot" if kind == BF16 else kind] for kind in kinds]
        groups = [labels(self.classes) for labels, _ in found]
        labels = [label for group in groups for label in group]
        losses = [loss for group, (_, loss) in zip(groups, found, strict=True) for _ in group]
        parts = []
        for batch in torch.split(images, BATCH):
            batch = as_floats(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                if labels:
                    norms = gradient_norms(
                        self.model, batch, label=labels, loss=losses, activations=True
                    )
                else:
                    norms = forward_norms(self.model, batch)
                parts.append(norms)
        whole = GradientNorms.join(parts)
        outputs = {k: t.float() for k, t in whole.tensors.items() if k != "values"}
        outputs["counts"] = torch.tensor(whole.channel_counts, dtype=torch.int64)
        values = whole.values.split([len(group) for group in groups], 1)
        by_kind = {kind: {"values": v} for kind, v in zip(kinds, values, strict=True)}
        return by_kind | {_outputs_of(bf16): outputs}


def as_floats(images: Tensor) -> Tensor:
    """Bytes as numbers in [0, 1]; others as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _outputs_of(bf16: bool) -> str:
    return f"{OUTPUTS}, bf16" if bf16 else OUTPUTS


def _key(images: Tensor, kind: str) -> list[bytes]:
    return [kind.encode(), str(images.dtype).encode(), images.numpy().tobytes()]
