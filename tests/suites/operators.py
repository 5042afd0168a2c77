"""PyTorch's own operator database: each argument in turn a parameter, another the batch."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from tests.suites.classifier import SAMPLES, Classifier, Layout, outputs
from tests.suites.entry import Case, Entry, seed, spread
from tests.suites.oracle import settle

#: Samples of each operator's own inputs, spread over its list.
INPUTS = 4
#: The most elements of an input or an output; some lists hold inputs of megabytes.
MOST = 20_000


def entries() -> list[Entry]:
    """Every differentiable operator of the database."""
    from torch.testing._internal.common_methods_invocations import op_db

    return [
        Entry("operators", op.formatted_name, partial(cases, op))
        for op in op_db
        if op.supports_autograd and torch.float64 in op.dtypes
    ]


def cases(op: Any) -> Iterator[Case]:
    """A classifier for every variant, input, parameter and place of the batch."""
    drawn = [_inputs(op, number) for number in range(SAMPLES)]
    chosen = spread(len(drawn[0]), INPUTS)
    for position, i in enumerate(chosen):
        same = [d[i] for d in drawn if i < len(d)]
        for variant, function in _variants(op) if position == 0 else _variants(op)[:1]:
            for name, model, x in _of_input(function, same):
                yield Case(f"{variant} {i} {name}", model, x)


def _inputs(op: Any, number: int) -> list[Any]:
    seed(number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(op.sample_inputs("cpu", torch.float64, requires_grad=False))


def _variants(op: Any) -> list[tuple[str, Callable[..., Any]]]:
    """The function, the method, Python's operator, the in-place method and the aliases."""
    found = [("function", op.op), ("method", op.method_variant), ("operator", op.operator_variant)]
    if op.inplace_variant is not None:
        found.append(("in place", _in_place(op.inplace_variant)))
    found += [(f"alias {alias.name}", alias.op) for alias in op.aliases]
    return [(name, f) for name, f in found if f is not None]


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(first: Any, *args: Any, **kwargs: Any) -> Any:
        return function(
            tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, first), *args, **kwargs
        )

    return run


def _of_input(
    function: Callable[..., Any], same: list[Any]
) -> Iterator[tuple[str, Classifier, Tensor]]:
    trees = [tree_flatten(((s.input, *s.args), s.kwargs)) for s in same]
    leaves, spec = trees[0]
    trees = [t for t, s in trees if s == spec]
    finish = same[0].output_process_fn_grad
    places = [i for i, leaf in enumerate(leaves) if _differentiable(leaf)]

    def call(*args: Any, **kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        return finish(out) if finish is not None else out

    drawn = {i: _drawn(trees, i) for i in places}
    for i in places:
        others = [j for j in places if j != i]
        for j in others[:1]:
            yield from _layouts(
                f"parameter {i}, batch {j}", call, leaves, spec, j, drawn[j], weights=[i]
            )
    for j in places[:2]:
        yield from _layouts(f"batch {j}", call, leaves, spec, j, drawn[j], shift=True)
    for i in places[:1]:
        with contextlib.suppress(Exception):
            model = Classifier(call, leaves, spec, None, Layout.STACKED, weights=[i])
            width = sum(t.numel() for t in _flat(model))
            seed(7)
            x = torch.randn(SAMPLES, width, dtype=torch.float64)
            yield f"parameter {i} alone", model.finish(x), x


def _drawn(trees: list[list[Any]], place: int) -> list[Tensor]:
    """An argument of every draw; where the list always gives the same, changed a little."""
    first = trees[0][place]
    same = [t[place] for t in trees if isinstance(t[place], Tensor)]
    same = [t for t in same if t.shape == first.shape]
    factors = torch.linspace(1, 1.01, len(same), dtype=torch.float64)
    if all(torch.equal(t, first) for t in same):
        same = [t * f for t, f in zip(same, factors, strict=True)]
    return same


def _flat(model: Classifier) -> list[Tensor]:
    return outputs(model._call(None, 0))


def _layouts(name, call, leaves, spec, place, drawn, **options):
    """The layouts in which the samples are independent, and one in which they are not."""
    dependent = None
    found = False
    for layout in (Layout.STACKED, Layout.ROWS, Layout.EACH):
        if layout is Layout.EACH and found:
            break
        built = _build(call, leaves, spec, place, drawn, layout, options)
        if built is None:
            continue
        model, x, right = built
        if isinstance(right, str) and "influence" in right:
            dependent = dependent or (f"{name}, {layout.value}", model, x)
            continue
        found = True
        yield f"{name}, {layout.value}", model, x
    if dependent is not None:
        yield dependent


def _build(call, leaves, spec, place, drawn, layout, options):
    leaf = leaves[place]
    try:
        if layout is Layout.ROWS:
            if leaf.dim() == 0 or len(leaf) < 2:
                return None
            x = torch.cat(drawn)[: max(SAMPLES, 2)]
        else:
            x = torch.stack([*drawn, *drawn, *drawn][:SAMPLES])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = Classifier(call, leaves, spec, place, layout, **options).finish(x)
            right = settle(model, x)
    except Exception:
        return None  # the operator does not take the batch in this way
    if isinstance(right, str) and right.startswith(("one sample", "no gradient")):
        return None
    return model, x, right


def _differentiable(leaf: Any) -> bool:
    return (
        isinstance(leaf, Tensor)
        and leaf.is_floating_point()
        and leaf.layout is torch.strided
        and 0 < leaf.numel() <= MOST
    )
