"""Ways to per-sample gradient norms, and the passes that they are compared with.

A method is prepared with a model, which it may wrap or change, and then called with a batch. It
returns what it computes, by parameter name: squared norms ``[N]``. The loss is the same everywhere:
binary cross-entropy to the label of all classes, summed over classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gradood.benchmarking.workloads import bce
from gradood.errors import BackendError
from gradood.gradients import gradient_norms
from gradood.ops.dispatch import load

#: Squared norms ``[N]`` by parameter name; empty for a pass that computes none.
Norms = dict[str, Tensor]
Call = Callable[[Tensor], Norms]

#: The name under which a method returns one number for all parameters together.
TOTAL = "total"


@dataclass(frozen=True)
class Method:
    """One way to the norms.

    Attributes:
        prepare: ``(model, autocast) → call``.
        package: The distribution that does the work.
        computes: ``"nothing"``, ``"norms"`` by parameter, ``"sum"`` of squared norms with the
            loss of softmax probabilities, or ``"l1"``, GradNorm's sum of absolute gradients.
        slow: Gets fewer rounds.
        casts: Also measured under bfloat16 autocast.
        quick: Measured under ``--quick`` too: neither imports nor runs for long.
    """

    prepare: Callable[[nn.Module, bool], Call]
    package: str = "torch"
    computes: str = "norms"
    slow: bool = False
    casts: bool = False
    quick: bool = False


def forward(model: nn.Module, autocast: bool) -> Call:
    """A prediction: what a user pays anyway."""

    def call(x: Tensor) -> Norms:
        with torch.no_grad(), _autocast(autocast):
            model(x)
        return {}

    return call


def forward_backward(model: nn.Module, autocast: bool) -> Call:
    """(b), an ordinary training step's passes: the gradient of the batch's loss."""

    def call(x: Tensor) -> Norms:
        with _autocast(autocast):
            logits = model(x)
        bce(logits).backward()
        model.zero_grad(set_to_none=True)
        return {}

    return call


def activation_only(model: nn.Module, autocast: bool) -> Call:
    """(c), the least that any method through backward does: no weight gradient at all."""
    model.requires_grad_(False)
    first: list[Tensor] = []

    def start_here(module: nn.Module, inputs: object, output: Tensor) -> None:
        if not output.requires_grad:
            first.append(output.requires_grad_())

    for module in model.modules():
        if list(module.parameters()) and not list(module.children()):
            module.register_forward_hook(start_here)

    def call(x: Tensor) -> Norms:
        first.clear()
        with _autocast(autocast):
            logits = model(x)
        torch.autograd.grad(bce(logits), first)
        first.clear()
        return {}

    return call


def through_backend(backend: str) -> Callable[[nn.Module, bool], Call]:
    """``gradood.gradient_norms`` with one of its backends forced."""

    def prepare(model: nn.Module, autocast: bool) -> Call:
        missing = load(backend)[1]
        if missing is not None:
            raise BackendError(f"backend {backend}: {missing}")

        def call(x: Tensor) -> Norms:
            with _forced(backend), _autocast(autocast):
                norms = gradient_norms(model, x)
            return dict(zip(norms.names, norms.values.unbind(1), strict=True))

        return call

    return prepare


def vectorised(chunk: int | None) -> Callable[[nn.Module, bool], Call]:
    """``torch.func.vmap(grad)`` with the squaring inside, over so many samples at a time or all."""

    def prepare(model: nn.Module, autocast: bool) -> Call:
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        buffers = dict(model.named_buffers())

        def loss(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
            return bce(functional_call(model, {**weights, **buffers}, (sample[None],)))

        def squared(weights: dict[str, Tensor], sample: Tensor) -> Norms:
            gradients = grad(loss)(weights, sample)
            return {name: g.square().sum() for name, g in gradients.items()}

        def call(x: Tensor) -> Norms:
            return vmap(squared, in_dims=(None, 0), chunk_size=chunk)(parameters, x)

        return call

    return prepare


def one_at_a_time(model: nn.Module, autocast: bool) -> Call:
    """Plain autograd, a sample after the other."""
    names, parameters = zip(*model.named_parameters(), strict=True)

    def call(x: Tensor) -> Norms:
        rows = []
        for sample in x.split(1):
            gradients = torch.autograd.grad(bce(model(sample)), parameters)
            rows.append(torch.stack([g.square().sum() for g in gradients]))
        return dict(zip(names, torch.stack(rows, 1), strict=True))

    return call


def _autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@contextmanager
def _forced(backend: str) -> Iterator[None]:
    before = os.environ.get("GRADOOD_BACKEND")
    os.environ["GRADOOD_BACKEND"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRADOOD_BACKEND"]
        else:
            os.environ["GRADOOD_BACKEND"] = before
