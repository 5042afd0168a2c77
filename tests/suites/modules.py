"""PyTorch's own module database: every module on its own inputs, in a small classifier."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from tests.gradients.oracle import randomise
from tests.suites.classifier import SAMPLES, Classifier, Layout
from tests.suites.entry import Case, Entry, seed, spread
from tests.suites.oracle import settle

#: Inputs of each module, spread over its list: a loss has 865, a module with parameters up to 54.
INPUTS = 60


def entries() -> list[Entry]:
    """Every module of the database."""
    from torch.testing._internal.common_modules import module_db

    return [
        Entry("modules", info.formatted_name, partial(cases, info))
        for info in module_db
        if torch.float64 in info.dtypes
    ]


def cases(info: Any) -> Iterator[Case]:
    """A classifier for each of the module's inputs."""
    drawn = [_inputs(info, number) for number in range(SAMPLES)]
    for i in spread(len(drawn[0]), INPUTS):
        one = drawn[0][i]
        if one.forward_input is None:
            continue
        same = [d[i] for d in drawn if i < len(d)]
        for layout, model, x in _layouts(info, one, same):
            yield Case(f"{i} {one.desc} {layout.value}".replace("  ", " "), model, x)


def _inputs(info: Any, number: int) -> list[Any]:
    seed(number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(
            info.module_inputs_func(
                info, device="cpu", dtype=torch.float64, requires_grad=False, training=False
            )
        )


def _layouts(info: Any, one: Any, same: list[Any]) -> Iterator[tuple[Layout, Classifier, Tensor]]:
    """The first layout in which the samples are independent; else one in which they are not."""
    dependent = None
    for layout, fit in (
        *product((Layout.ROWS, Layout.COLUMNS), (0, 1)),
        *((Layout.STACKED, None), (Layout.EACH, None)),
    ):
        built = _build(info, one, same, layout, fit)
        if built is None:
            continue
        model, x, right = built
        if isinstance(right, str) and "influence" in right:
            dependent = dependent or (layout, model, x)
            continue
        yield layout, model, x
        break
    if dependent is not None:
        yield dependent


def _build(
    info: Any, one: Any, same: list[Any], layout: Layout, fit: int | None
) -> tuple[Classifier, Tensor, Tensor | str] | None:
    leaves, spec = tree_flatten((tuple(one.forward_input.args), one.forward_input.kwargs))
    place = next((i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)), None)
    if place is None:
        return None
    batches = [
        tree_flatten((tuple(s.forward_input.args), s.forward_input.kwargs))[0][place] for s in same
    ]
    dim = 1 if layout is Layout.COLUMNS else 0
    try:
        if layout in (Layout.ROWS, Layout.COLUMNS):
            x = torch.cat(batches, dim).transpose(0, dim)[:SAMPLES].contiguous()
        else:
            x = torch.stack(batches)
        seed(3)
        module = info.module_cls(*one.constructor_input.args, **one.constructor_input.kwargs)
        randomise(module.double())
        free = not list(module.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = Classifier(module, leaves, spec, place, layout, shift=free, fit=fit)
            model.rows = leaves[place].shape[dim] if leaves[place].dim() > dim else -1
            model.finish(x)
            right = settle(model, x)
    except Exception:
        return None  # the module does not take the batch in this way
    if isinstance(right, str) and right.startswith(("one sample", "no gradient")):
        return None
    return model, x, right
