"""Logits that must be the same in another batch: compared as such, rounding told from influence.

Batches of other sizes use other kernels, and rounding may grow on its way through a model. What may
be more than rounding is computed again by a copy of the model in float64.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gradood.errors import ModelError
from gradood.gradients.randomness import restart
from gradood.gradients.state import observed
from gradood.gradients.validation import logits_of

#: By the bytes of a number, the relative error of a logit, and the error relative to the largest
#: logit of its sample, up to which two ways of computing it are the same without a second look.
_STRICT = {8: (1e-8, 1e-11), 4: (1e-4, 1e-6), 2: (2e-2, 1e-2)}
#: The error relative to the largest logit of a sample where there is no second look.
_ROUGH = {8: 1e-6, 4: 1e-2, 2: 1e-1}

#: So many last bits may change with other samples: some libraries place their loops by memory.
LAST_BITS = 64
#: Samples of a batch that are looked at in float64; the others follow suit.
SECOND_LOOKS = 3


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether logits ``[N, C]`` are the same but for rounding beyond doubt."""
    relative, of_largest = _STRICT[_itemsize(found)]
    return _close(found, expected, relative, of_largest)


def agree_roughly(found: Tensor, expected: Tensor) -> bool:
    """Whether they agree roughly, where a stricter comparison is impossible."""
    return _close(found, expected, 0.0, _ROUGH[_itemsize(found)])


def same_to_the_last_bits(found: Tensor, expected: Tensor) -> bool:
    """Whether no logit differs by more than some last bits of its own."""
    return _close(found, expected, LAST_BITS * torch.finfo(found.dtype).eps, 0.0)


def in_float64(model: nn.Module, *batches: Tensor) -> list[Tensor] | None:
    """The logits of every batch from a copy of the model in float64, if there can be one."""
    try:
        exact = copy.deepcopy(model).double()
        found = []
        for x in batches:
            with torch.autocast(x.device.type, enabled=False), observed(exact, []):
                restart(x)
                x = x.double() if x.is_floating_point() else x
                out = exact(x.clone())  # some models look at the memory of their input
                found.append(logits_of(out, len(x)).detach())
        return found
    except Exception:  # a model may refuse copies and other precisions in ways of its own
        return None


class BatchLogits:
    """The logits of a batch, which its samples must have alone as well."""

    def __init__(self, model: nn.Module, x: Tensor, logits: Tensor) -> None:
        self._model, self._x, self._logits = model, x, logits
        self._looks = 0

    def check(self, rows: slice, logits: Tensor) -> None:
        """Refuse ``logits`` that the samples ``rows`` have alone and not in the batch.

        Raises:
            ModelError: Some sample's are others.
        """
        expected = self._logits[rows]
        if agree(logits, expected):
            return
        first = range(len(self._x))[rows][0]
        for i, (alone, together) in enumerate(zip(logits.split(1), expected.split(1), strict=True)):
            if not agree(alone, together) and not self._is_rounding(first + i, alone, together):
                raise ModelError(
                    "the logits of a sample alone are not those it has in its batch: the samples "
                    "influence one another, or the model draws random numbers; call model.eval()"
                )

    def _is_rounding(self, n: int, alone: Tensor, together: Tensor) -> bool:
        self._looks += 1
        if self._looks > SECOND_LOOKS:
            return agree_roughly(alone, together)
        exact = in_float64(self._model, self._x[n : n + 1], self._x)
        if exact is None:
            return agree_roughly(alone, together)
        return agree(exact[0], exact[1][n : n + 1])


def _itemsize(logits: Tensor) -> int:
    return 2 if torch.is_autocast_enabled(logits.device.type) else logits.element_size()


def _close(found: Tensor, expected: Tensor, relative: float, of_largest: float) -> bool:
    found, expected = found.detach(), expected.detach().to(found)
    largest = expected.abs().nan_to_num(0.0, 0.0, 0.0).amax(1, keepdim=True)
    close = (found - expected).abs() <= relative * expected.abs() + of_largest * largest
    same = (found == expected) | (found.isnan() & expected.isnan())
    return bool((close | same).all())
