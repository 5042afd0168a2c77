"""What scoring a batch gives, in parts and as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradood.gradients.activations import Activations


class Scores(NamedTuple):
    """What one or several passes found: values ``[N, K, L]``, logits ``[N, C]``, and perhaps more.

    That is features ``[N, F]``, and what was measured of the activations.
    """

    values: Tensor
    logits: Tensor
    features: Tensor | None
    activations: Activations = Activations()

    def each(self, change: Callable[[Tensor], Tensor]) -> Scores:
        """The same with every tensor changed."""
        return Scores(
            change(self.values),
            change(self.logits),
            if_known(change, self.features),
            self.activations._replace(
                norms=if_known(change, self.activations.norms),
                channels=if_known(change, self.activations.channels),
            ),
        )

    @staticmethod
    def join(parts: Sequence[Scores]) -> Scores:
        """Several micro-batches as one."""
        return Scores(
            torch.cat([part.values for part in parts]),
            torch.cat([part.logits for part in parts]),
            join_known([part.features for part in parts]),
            parts[0].activations._replace(
                norms=join_known([part.activations.norms for part in parts]),
                channels=join_known([part.activations.channels for part in parts]),
            ),
        )


def if_known(change: Callable[[Tensor], Tensor], tensor: Tensor | None) -> Tensor | None:
    """The changed tensor; None stays None."""
    return None if tensor is None else change(tensor)


def join_known(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All parts as one, or None where one is missing."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None
