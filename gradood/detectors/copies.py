"""How much a prediction hangs on details: logits of copies of an input, changed a little."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gradood.detectors.batches import AnyBatch
from gradood.gradients import GradientNorms
from gradood.gradients.decision import as_classes, margin
from gradood.gradients.validation import class_logits
from gradood.inputs import Inputs

#: Copies of every input; each costs a forward pass.
COPIES = 3
#: Deviation of the noise, relative to that of the input's own numbers.
NOISE = 0.1
#: A picture has at most so many channels, and at least so many pixels a side.
_CHANNELS, _SIDE = 4, 8

_Change = Callable[[Tensor], Tensor]


def copied_logits(model: nn.Module, batch: AnyBatch) -> Tensor | None:
    """Logits ``[N, COPIES, C]``, C ≥ 2, of changed copies of a batch.

    Of a picture ``[N, channels, height, width]``: mirrored, moved by a pixel down and right, and
    with noise; of other real numbers with three kinds of noise, always the same three. None where
    nothing in the batch is a real number: neither is a token changed a little.
    """
    changes = _changes(batch)
    if changes is None:
        return None
    return torch.stack([class_logits(model, _changed(batch, change)) for change in changes], 1)


def margin_drop(norms: GradientNorms) -> Tensor:
    """``m(z) − mean_t m(z_t)``, ``m(z) = z_c − max_{k≠c} z_k``, c the predicted class, ``[N]``.

    z are an input's logits, z_t those of a copy of it: what an attack made holds for the very
    numbers that it made. Source: Roth, Kilcher, Hofmann, "The Odds are Odd: A Statistical Test for
    Detecting Adversarial Examples", 2019 (noise); Xu, Evans, Qi, "Feature Squeezing", 2018 (other
    changes); here averaged, without their thresholds by class.
    """
    assert norms.copies is not None
    logits = as_classes(norms.logits).float()
    classes = logits.argmax(1)
    copies = [margin(copy.float(), classes) for copy in norms.copies.unbind(1)]
    return margin(logits, classes) - torch.stack(copies).mean(0)


def _changes(batch: AnyBatch) -> list[_Change] | None:
    tensors = batch.tensors if isinstance(batch, Inputs) else [batch]
    real = [t for t in tensors if t.is_floating_point() and t.dim() > 1]
    if not real:
        return None
    if all(_is_picture(t) for t in real):
        return [lambda t: t.flip(3), _moved, lambda t: _noisy(t, 0)]
    return [lambda t, seed=seed: _noisy(t, seed) for seed in range(COPIES)]  # type: ignore[misc]


def _changed(batch: AnyBatch, change: _Change) -> AnyBatch:
    def leaf(t: object) -> object:
        real = isinstance(t, Tensor) and t.is_floating_point() and t.dim() > 1
        return change(t) if real else t  # type: ignore[arg-type]

    if isinstance(batch, Inputs):
        return Inputs([leaf(t) for t in batch.leaves], batch.spec)
    return change(batch)


def _is_picture(t: Tensor) -> bool:
    return t.dim() == 4 and t.shape[1] <= _CHANNELS and min(t.shape[2:]) >= _SIDE


def _moved(t: Tensor) -> Tensor:
    height, width = t.shape[2:]
    return pad(t, (1, 0, 1, 0), mode="replicate")[:, :, :height, :width]


def _noisy(t: Tensor, seed: int) -> Tensor:
    """The same noise for every sample, so that a score does not depend on its batch."""
    generator = torch.Generator("cpu").manual_seed(seed)  # the same numbers on every device
    noise = torch.randn(t.shape[1:], generator=generator, dtype=torch.float32, device="cpu")
    noise = noise.to(t.device, t.dtype)
    deviation = t.flatten(1).std(1, correction=0).view(-1, *[1] * (t.dim() - 1))
    return t + NOISE * deviation * noise
