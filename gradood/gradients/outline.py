"""Modules and parameters of a model, collected in one walk and cached while they stay the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn import Parameter

from gradood.gradients.rules.embedding import refuse_renormalisation


@dataclass
class Outline:
    """The modules of a model, and results that are valid while these modules stay the same."""

    #: Names and identities of all modules and parameters, in the order of the walk.
    key: tuple[Any, ...]
    modules: frozenset[int]
    #: Modules that were in training mode at the last walk.
    training: tuple[bool, ...] = ()
    #: The chosen parameters, by selection.
    selections: dict[Any, dict[str, Parameter]] = field(default_factory=dict)

    def selected(
        self, selection: Any, choose: Callable[[], dict[str, Parameter]]
    ) -> dict[str, Parameter]:
        """The parameters of a selection. Predicates are not cached."""
        if selection is not None and not isinstance(selection, str):
            return choose()
        if selection not in self.selections:
            self.selections[selection] = choose()
        return self.selections[selection]


def outline(model: nn.Module) -> Outline:
    """The outline of a model as it is now.

    Raises:
        ModelError: A table of it would be rewritten by every forward pass.
    """
    key: list[Any] = []
    modules: set[int] = set()
    training: list[bool] = []
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module is None or id(module) in modules:
            continue
        modules.add(id(module))
        training.append(module.training)
        parameters, children = module._parameters, module._modules
        key += (id(module), *parameters.keys(), *map(id, parameters.values()), *children.keys())
        waiting += children.values()  # type: ignore[arg-type]
    known = _OUTLINES.get(model)
    if known is None or known.key != tuple(key):
        for module in model.modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                refuse_renormalisation(module.max_norm)
        known = _OUTLINES[model] = Outline(tuple(key), frozenset(modules))
    known.training = tuple(training)
    return known


_OUTLINES: WeakKeyDictionary[nn.Module, Outline] = WeakKeyDictionary()
