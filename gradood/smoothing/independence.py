"""Checks that the rows of a forward pass do not influence one another, as every bound assumes.

A certificate counts n samples as independent. They are if each row of a pass is a function of
itself alone, or has its own randomness. A model does not say so. The first tile is therefore run
again beside other rows and, if the model is random, as copies of one row.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from gradood.errors import ModelError

Pass = Callable[[Tensor], Tensor]

#: How often the first tile is run again. Randomness that no known generator shows is missed with
#: probability 2^-_REPEATS.
_REPEATS = 6
#: Passes of copies of one row, and the chance of calling independent rows dependent.
_PASSES, _FALSE_ALARM = 8, 1e-6
#: Passes after which another tile is run again.
_EVERY = 32


def check_rows(run: Pass, tile: Tensor) -> tuple[bool, Tensor]:
    """Whether the model is random, so that each row needs a pass of its own; and the first result.

    A model counts as random if it advances a generator of PyTorch, NumPy or Python, or gives two
    results for the same tile. Its rows may share randomness too rare for a probe to see; one row a
    pass is independent by construction.

    Args:
        run: ``[T, ...] -> [T, ...]``.
        tile: Noisy inputs ``[T, ...]``, T > 1.
    """
    before = _generators(tile.device)
    first = run(tile)
    drawn = _generators(tile.device) != before
    drawn = drawn or any(not _same(first, run(tile)) for _ in range(_REPEATS))
    if drawn:
        _refuse_shared_coins(run, tile)
        return True, first
    for kept in _quarters(len(tile)):
        if not _same(first[kept], run(_beside_others(tile, kept))[kept]):
            raise _dependent()
    return False, first


def due(passes: int) -> bool:
    """Whether to check again after so many passes: often at first, later every 32nd time."""
    return passes > 1 and (passes % _EVERY == 0 or passes & (passes - 1) == 0)


def check_again(run: Pass, tile: Tensor, result: Tensor) -> None:
    """Check a later tile, so that rare influence is found as well.

    Args:
        run: As for ``check_rows``, which found that rows are functions of themselves.
        tile: Noisy inputs ``[T, ...]``, T > 1.
        result: The model's result for them.
    """
    for kept in _quarters(len(tile))[:1]:
        if not _same(result[kept], run(_beside_others(tile, kept))[kept]):
            raise _dependent()


def _generators(device: torch.device) -> tuple[Any, ...]:
    """The states of all generators that code usually draws from."""
    states: list[Any] = [torch.get_rng_state().numpy().tobytes(), random.getstate()]
    name, keys, *rest = np.random.get_state()
    states += [name, np.asarray(keys).tobytes(), *rest]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return tuple(states)


def _quarters(rows: int) -> tuple[Tensor, Tensor]:
    """Two disjoint random sets of rows."""
    order = torch.randperm(
        rows, generator=torch.Generator().manual_seed(rows), dtype=torch.int64, device="cpu"
    )
    size = max(1, rows // 4)
    return order[:size], order[size : 2 * size]


def _beside_others(tile: Tensor, kept: Tensor) -> Tensor:
    """The kept rows in their places and a copy of the first of them in all others.

    Every statistic of the batch changes.
    """
    kept = kept.to(tile.device)
    other = _copies_of(tile, tile[kept[:1]])
    other[kept] = tile[kept]
    return other


def _copies_of(tile: Tensor, row: Tensor) -> Tensor:
    """One row in every place, in the tile's memory layout, which selects the kernel."""
    return tile.clone().copy_(row.expand_as(tile))


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit on the CPU, where rows stay in their places; else up to rounding.

    Logits that differ by less than a tolerance may still be of two classes.
    """
    if a.device.type == "cpu":
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    return _close(a, b)


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding: kernels on a GPU sum in any order."""
    a, b = a.double(), b.double()
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(7), b[~finite].nan_to_num(7)):
        return False
    if not finite.any():
        return True
    numbers = a[finite]
    allowed = 1e-5 * numbers.abs().max() + 1e-4 * (numbers.max() - numbers.min())
    return bool(((a - b)[finite].abs() <= allowed).all())


def _refuse_shared_coins(run: Pass, tile: Tensor) -> None:
    """Copies of one row: independent ones differ within a pass as much as between passes."""
    copies = _copies_of(tile, tile[:1])
    results = torch.stack([run(copies).double().cpu() for _ in range(_PASSES)]).nan_to_num(0)
    if all(_close(result, result[:1].expand_as(result)) for result in results):
        raise _shared()
    table = results.reshape(_PASSES, len(tile), -1).numpy()  # [passes, rows, columns]
    passes, rows, columns = table.shape
    means = table.mean(1)
    within = ((table - means[:, None]) ** 2).sum((0, 1)) / (passes * (rows - 1))
    between = rows * means.var(0, ddof=1)
    some = (within > 0) | (between > 1e-12 * (1 + means**2).max())
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = between[some] / within[some]
    chance = stats.f.sf(ratio, passes - 1, passes * (rows - 1))
    if (chance < _FALSE_ALARM / max(columns, 1)).any():
        raise _shared()


def _dependent() -> ModelError:
    return ModelError(
        "a row's result depends on the rows beside it in the batch (as by statistics of the batch, "
        "or dynamic quantisation) or on a coin of its own generator, so that samples are not "
        "independent; call model.eval(), use static quantisation, or certify with Smoothing(tile=1)"
    )


def _shared() -> ModelError:
    return ModelError(
        "the model is random, and rows of one batch share their randomness (as one coin, crop or "
        "mask a batch does), so that samples are not independent; switch it off with model.eval(), "
        "draw it for every row, or certify with Smoothing(tile=1), one row a pass"
    )
