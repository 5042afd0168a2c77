"""Noisy copies of checked inputs, each a function of seed, input and sample alone."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from gradood import ops
from gradood.arrays import Floats
from gradood.errors import InputError
from gradood.inputs import require_one_tensor
from gradood.smoothing.rounding import levels, slack
from gradood.smoothing.settings import DTYPES, Smoothing

#: Independent streams of noise.
ESTIMATION, SELECTION = 0, 1

#: Numbers of a tile that "auto" aims at, by kind of device, and the limits of its rows.
_TILE_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 24}
_TILE_ROWS = {"cpu": (8, 64), "cuda": (32, 1024)}


class NoisyInputs:
    """N inputs and their noise.

    Args:
        x: Floating point ``[N, ...]``, finite.
        ids: A number below 2^32 for each input, all different: which noise it gets. By default its
            row; give your own to certify parts of a set separately, or in another order.
        settings: The noise; a seed that is None is drawn here.
    """

    def __init__(self, x: Tensor, ids: Sequence[int] | Tensor | None, settings: Smoothing) -> None:
        _check_inputs(x, settings)
        # float64 is kept: rounded to float32 it would be another input.
        self.x = x.detach() if x.dtype == torch.float64 else x.detach().float()
        self.ids = _checked_ids(ids, len(x))
        if settings.seed is None:
            settings = replace(settings, seed=secrets.randbits(64) - 2**63)
        self.settings = settings
        self.tile = _tile(x, settings)
        self._device_ids = self.ids.to(x.device)
        self._limits = settings.clamp or (None, None)
        self._keys: dict[int, Tensor] = {}
        self._levels = levels(settings.sigma, settings.exact_grid)

    @property
    def magnitude(self) -> Floats:
        """``[N]``: the largest absolute number of each input."""
        largest = self.x.abs().flatten(1).amax(1).double()
        return np.asarray(largest.cpu().numpy(), np.float64)

    @property
    def slack(self) -> Floats:
        """``[N]``: how far the probability of any event may be from the one that is sampled."""
        return slack(self.settings.as_json(), self.x.shape[1:], self.magnitude)

    def copies(self, rows: Tensor, samples: Tensor, tag: int) -> Tensor:
        """Noisy copies ``[M, ...]`` of rows of x, each with the number of its sample."""
        rows, samples = rows.to(self.x.device), samples.to(self.x.device)
        noisy: Tensor = ops.grid_batch(
            self.x,
            rows,
            self._device_ids[rows],
            samples,
            self._key(tag),
            self.settings.sigma,
            self._levels,
            *self._limits,
            DTYPES[self.settings.dtype],
            self.settings.channels_last,
        )
        return noisy

    def _key(self, tag: int) -> Tensor:
        if tag not in self._keys:
            self._keys[tag] = torch.tensor(
                [self.settings.seed, tag], dtype=torch.int64, device=self.x.device
            )
        return self._keys[tag]

    def digest(self) -> str:
        """A hash of inputs and ids."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.x.dtype} {list(self.x.shape)}".encode())
        digest.update(self.x.cpu().contiguous().numpy().tobytes())
        digest.update(self.ids.numpy().tobytes())
        return digest.hexdigest()


def _check_inputs(x: Tensor, settings: Smoothing) -> None:
    require_one_tensor(x)
    if x.dim() < 2:
        raise InputError("x must be a Tensor [N, ...] with the inputs along dimension 0")
    if not x.is_floating_point():
        raise InputError(f"x is {x.dtype}, expected floating point; for 0…255 give x.float() / 255")
    finite = x.flatten(1).isfinite().all(1)
    if not finite.all():
        rows = (~finite).nonzero().flatten().tolist()
        raise InputError(f"x holds NaN or Inf in rows {rows[:10]}; remove them")
    if settings.channels_last and x.dim() != 4:
        raise InputError(f"channels_last needs images [N, C, H, W], x is {list(x.shape)}")
    if prod(x.shape[1:]) == 0 or prod(x.shape[1:]) >= 2**33:
        raise InputError(f"an input of shape {list(x.shape[1:])} cannot be smoothed")


def _checked_ids(ids: Sequence[int] | Tensor | None, count: int) -> Tensor:
    if ids is None:
        return torch.arange(count, dtype=torch.int64, device="cpu")
    numbers = torch.as_tensor(ids, device="cpu")
    if numbers.shape != (count,) or numbers.is_floating_point():
        raise InputError(f"ids must be {count} integers, one for every input")
    numbers = numbers.long()
    if count and (int(numbers.min()) < 0 or int(numbers.max()) >= 2**32):
        raise InputError("ids must lie in [0, 2^32)")
    if len(numbers.unique()) < count:
        raise InputError("ids repeat; inputs with the same id would share their noise")
    return numbers


def _tile(x: Tensor, settings: Smoothing) -> int:
    if settings.tile != "auto":
        return settings.tile
    kind = "cuda" if x.device.type == "cuda" else "cpu"
    low, high = _TILE_ROWS[kind]
    rows = _TILE_NUMBERS[kind] // prod(x.shape[1:])
    return min(high, max(low, 1 << max(0, rows.bit_length() - 1)))
