"""Confounding labels, and the gradient of the loss at the logits in closed form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from gradood.errors import InputError
from gradood.gradients.decision import as_classes

LOSSES = ("bce", "bce_softmax", "ce", "logit")
#: Those of the softmax: of one logit they read the two classes that its sigmoid decides between.
_SOFTMAX = ("bce_softmax", "ce")
_NAMES = (
    '"all_hot", "zero_hot", "k_hot:K", "top_k_hot:K", "one_hot:c", "predicted", "uniform", '
    "or a Tensor [C] or [N, C]"
)

Label = str | Tensor


def target(label: Label, logits: Tensor, loss: str) -> Tensor:
    """Return the label as a float64 target ``[N, C]`` for ``logits`` ``[N, C]``.

    For a loss of the softmax of one logit it is ``[N, 2]``, and a given one is the probability of
    class 1. ``k_hot:K`` draws one set of K classes from a fixed seed (``k_hot:K:SEED`` chooses
    another), the same for every sample, so that a result does not depend on the batch it was
    computed in.
    """
    samples, classes = logits.shape
    if isinstance(label, Tensor):
        given = _given(label, samples, classes).to(logits.device, torch.float64).expand_as(logits)
        two = classes == 1 and loss in _SOFTMAX
        return torch.cat([1 - given, given], 1) if two else given
    if loss in _SOFTMAX:
        logits = as_classes(logits)
        classes = logits.shape[1]
    name, _, argument = label.partition(":")
    hot = torch.zeros(samples, classes, dtype=torch.float64, device=logits.device)
    match name, argument:
        case "all_hot", "":
            return hot + 1
        case "zero_hot", "":
            return hot
        case "uniform", "":
            return hot + 1 / classes
        case "predicted", "" if classes == 1:
            return (logits > 0).to(hot) if loss == "bce" else hot + 1
        case "predicted", "":
            return one_hot(logits.argmax(1), classes).to(hot)
        case "one_hot", _:
            hot[:, _number(label, argument, classes - 1)] = 1
            return hot
        case "k_hot", _:
            count, _, seed = argument.partition(":")
            generator = torch.Generator().manual_seed(_number(label, seed or "0", 2**63 - 1))
            order = torch.randperm(classes, generator=generator, dtype=torch.int64, device="cpu")
            hot[:, order[: _number(label, count, classes)].to(hot.device)] = 1
            return hot
        case "top_k_hot", _:
            top = logits.topk(_number(label, argument, classes), 1).indices
            return hot.scatter_(1, top, 1)
    raise InputError(f"label {label!r} is not known; use {_NAMES}")


def loss_gradient(logits: Tensor, label: Label, loss: str) -> Tensor:
    """``logit_gradient`` for a label that may have a name, detached."""
    if isinstance(label, str) and (label, loss) == ("all_hot", "bce"):
        return (-logits.detach().double()).sigmoid_().neg_()  # the same, in fewer steps
    return logit_gradient(logits.detach(), target(label, logits, loss), loss)


def logit_gradient(logits: Tensor, label: Tensor, loss: str) -> Tensor:
    """Gradient of every sample's loss with respect to its logits z, ``[N, C]`` float64.

    With the label y ``[N, C]``, the sigmoid σ and the softmax p:

    * ``bce``: ``Σ_c BCE(σ(z_c), y_c)`` has the gradient ``(1 − y) σ(z) − y σ(−z)``;
    * ``ce``: ``−Σ_c ȳ_c log p_c`` with ``ȳ = y / Σ y`` has ``p (1 − ȳ) − ȳ (1 − p)``;
    * ``bce_softmax``: ``Σ_c BCE(p_c, y_c)`` has ``w − p Σ_c w_c`` with
      ``w = (1 − y) p / (1 − p) − y``;
    * ``logit``: ``Σ_c y_c z_c`` has ``y``.

    One logit z has the softmax of −z/2 and z/2, and half the difference of their gradients.
    Written so that nothing cancels: a confident prediction has a tiny gradient, not a zero one.
    Differentiable in z.
    """
    z = logits.double()
    if loss == "logit":
        return label
    if loss == "bce":
        return (1 - label) * z.sigmoid() - label * (-z).sigmoid()
    if z.shape[1] == 1:
        both = logit_gradient(as_classes(z), label, loss)
        return (both[:, 1:] - both[:, :1]) / 2
    p = z.softmax(1)
    rest = _complement(p)
    if loss == "ce":
        total = label.sum(1, keepdim=True)
        if not bool((total > 0).all()):
            raise InputError('loss "ce" normalises the label, which needs a positive sum')
        share = label / total
        return p * (1 - share) - share * rest
    if loss == "bce_softmax":
        weight = torch.where(label < 1, (1 - label) * p / rest, 0.0) - label
        return weight - p * weight.sum(1, keepdim=True)
    raise InputError(f"loss {loss!r} is not known; use one of {', '.join(LOSSES)}")


def _complement(p: Tensor) -> Tensor:
    """``1 − p`` without cancellation where p is close to one: the sum of the other classes."""
    top = p.argmax(1, keepdim=True)
    return (1 - p).scatter(1, top, p.scatter(1, top, 0.0).sum(1, keepdim=True))


def _given(label: Tensor, samples: int, classes: int) -> Tensor:
    if label.shape not in ((classes,), (samples, classes)):
        raise InputError(
            f"a label tensor must be [{classes}] or [{samples}, {classes}], "
            f"not {list(label.shape)}; class indices go through one_hot"
        )
    if not bool(((label >= 0) & (label <= 1)).all()):
        raise InputError("a label tensor holds numbers between 0 and 1")
    return label


def _number(label: str, text: str, most: int) -> int:
    if not text.isdecimal() or int(text) > most:
        raise InputError(f"label {label!r} needs a whole number from 0 to {most} after the colon")
    return int(text)
