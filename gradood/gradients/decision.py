"""What a classifier decides: the class that a row of logits stands for.

A model with one logit z decides by its sigmoid: class 1 where z > 0, else class 0. The same as two
logits −z/2 and z/2, whose softmax is (1 − σ(z), σ(z)); so whatever reads classes reads these.
"""

from __future__ import annotations

import torch
from torch import Tensor


def as_classes(logits: Tensor) -> Tensor:
    """Logits ``[N, C]``, C ≥ 2, whose softmax and argmax are those of a classifier.

    One logit z becomes the two −z/2 and z/2, of which neither class is the familiar one.
    """
    return torch.cat([-logits / 2, logits / 2], 1) if logits.shape[1] == 1 else logits


def predicted(logits: Tensor) -> Tensor:
    """The class ``[N]`` that each row of logits ``[N, C]`` stands for; of one logit its sign."""
    return as_classes(logits).argmax(1)


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """``z_c − max_{k≠c} z_k`` ``[N]`` of logits ``[N, C]``, C ≥ 2, and classes ``[N]``."""
    own = classes[:, None]
    others = logits.scatter(1, own, -torch.inf).amax(1)
    return logits.gather(1, own)[:, 0] - others


def not_finite_rows(*tensors: Tensor | None) -> Tensor:
    """Which rows ``[N]`` hold NaN or Inf in any of some tensors ``[N, ...]``."""
    finite = [t.flatten(1).isfinite().all(1) for t in tensors if t is not None]
    return ~torch.stack(finite).all(0)
