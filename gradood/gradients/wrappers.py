"""Models that others have wrapped: while their operators are watched, they run as written."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gradood.errors import ModelError


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Run compiled parts of models without compiling, and ``model`` without hooks of its wrapper.

    What ``torch.compile`` made would trace into whatever watches the operators, for half a minute,
    and its backward pass serves once. Opacus's ``GradSampleModule`` computes gradients a sample in
    hooks of its own, whose forward ones rest in evaluation mode and whose backward ones do not.
    """
    hooked = getattr(model, "hooks_enabled", False) is True and hasattr(model, "disable_hooks")
    with _uncompiled():
        try:
            if hooked:
                model.disable_hooks()  # type: ignore[operator]
            yield
        finally:
            if hooked:
                model.enable_hooks()  # type: ignore[operator]


#: Where PyTorch's containers and wrappers are, which do the same in either mode.
_MODELESS = frozenset(
    ("torch.nn.modules.container", "torch.nn.parallel.data_parallel")
    + ("torch.nn.parallel.distributed", "torch._dynamo.eval_frame")
)


def has_own_mode(module: nn.Module) -> bool:
    """Whether ``module.training`` means anything: not of what only calls other modules.

    ``torch.nn.DataParallel(model.eval())`` is in training mode, and its model is not.
    """
    return type(module).__module__ not in _MODELESS


def is_plain(p: Parameter) -> bool:
    """Whether a parameter is a plain tensor: not quantised, sharded or otherwise wrapped."""
    return not is_traceable_wrapper_subclass(p) and not is_traceable_wrapper_subclass(p.data)


def refuse_quantised(model: nn.Module) -> None:
    """Raise ModelError if ``model``, which has no parameters, keeps its weights as integers."""
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            raise ModelError(
                f"the weights of {name or 'the model'} are quantised ({type(module).__name__}) "
                "and have no gradient; give the model as it was trained, or use a detector that "
                "reads logits"
            )


def refuse_script(model: nn.Module) -> None:
    """Raise ModelError if the operators of ``model`` cannot be seen."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ModelError(
            "TorchScript hides its operators, so there are no gradient norms of it; save the model "
            "with torch.export.save, or use a detector that reads logits (--detector max-softmax "
            "or energy)"
        )


_LOCK = threading.Lock()
_depth = 0
_stance: Any = None


@contextmanager
def _uncompiled() -> Iterator[None]:
    """The stance "force_eager", which all threads share: from the first that wants it to the last.

    Compiled models that run in other threads meanwhile give what they give uncompiled.
    """
    global _depth, _stance
    if "torch._dynamo" not in sys.modules:  # nothing is compiled; importing it takes a second
        yield
        return
    with _LOCK:
        if _depth == 0:
            _stance = torch.compiler.set_stance("force_eager")
        _depth += 1
    try:
        yield
    finally:
        with _LOCK:
            _depth -= 1
            if _depth == 0:
                _stance.__exit__(None, None, None)
