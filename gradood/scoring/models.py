"""One way to name a model: ``load_model`` serves every command."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradood.arguments import checked, one_of
from gradood.data.preprocessing import Preprocessing, Transform, read_preprocessing
from gradood.data.weights import load_weights
from gradood.errors import InputError
from gradood.scoring.programs import load_program

_LOG = logging.getLogger("gradood")

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_EXPECTED = (
    "package.module:function, timm:NAME, transformers:NAME or FOLDER, or a file of "
    "torch.export.save or torch.jit.save"
)


@dataclass(frozen=True)
class LoadedModel:
    """A classifier in eval mode, and how pictures become its inputs.

    Attributes:
        model: ``[N, …] -> logits [N, C]``.
        transform: Picture -> input tensor, float32.
        device: Where the model is.
        dtype: Of its floating-point inputs.
    """

    model: nn.Module
    transform: Transform
    device: torch.device
    dtype: torch.dtype


@checked
def load_model(
    name: str | None = None,
    *,
    weights: str | Path | None = None,
    classes: int | None = None,
    preprocess: str | None = None,
    trust: bool = False,
    device: str = "auto",
    dtype: str = "float32",
    compile: bool = False,
) -> LoadedModel:
    """A model by name.

    Args:
        name: ``package.module:attribute``, which is a module, or a function that returns one, or
            one and a function from pictures to tensors; ``timm:NAME``; ``transformers:FOLDER`` or
            a type such as ``transformers:vit``; a file of ``torch.export.save`` or
            ``torch.jit.save``; None for the embedded classifier. ``timm:`` and ``transformers:``
            may be left out where the name is known to one of them.
        weights: Safetensors, or a state dict; needed for architectures.
        classes: Number of classes of the weights, where it is not the architecture's own.
        preprocess: JSON, or a file of JSON, with the fields of ``Preprocessing``; None for what
            the model brings along, or else pixels in [0, 1] as they are.
        trust: Whether the author of a program file is trusted.
        device: "auto" for a GPU where there is one, or as in ``torch.device``.
        dtype: "float32", "float64", "bfloat16" or "float16", of parameters and inputs.
        compile: Run ``torch.compile``'s version; for scores of logits.

    Raises:
        InputError: There is no such model, or an argument does not go with it.
        ModelError: The program in a file cannot be scored.
        CheckpointError: The weights cannot be read, or do not fit.

    Example:
        >>> loaded = load_model("gradood.data:embedded_classifier", device="cpu")
        >>> loaded.model(images).shape
        torch.Size([5, 10])
        >>> load_model("timm:resnet18", weights="resnet18.safetensors")        # doctest: +SKIP
    """
    one_of("dtype", dtype, DTYPES)
    place = find_device(device)
    model, transform = _make(name, weights, classes, trust)
    if preprocess is not None:
        transform = read_preprocessing(preprocess)
    if transform is None:
        transform = Preprocessing()
        _LOG.info("pictures become RGB in [0, 1] as they are; --preprocess says otherwise")
    if any(module.training for module in model.modules()):
        model.eval()
    model = model.to(place, DTYPES[dtype])
    if compile:
        model = torch.compile(model)  # type: ignore[assignment]
    return LoadedModel(model, transform, place, DTYPES[dtype])


def _make(
    name: str | None, weights: str | Path | None, classes: int | None, trust: bool
) -> tuple[nn.Module, Transform | None]:
    if name is None:
        return _embedded(weights, classes)
    kind, separator, rest = name.partition(":")
    if separator and kind in _FAMILIES:
        return _family(kind, rest, weights, classes)
    if Path(name).is_file():
        _refuse(name, weights=weights, classes=classes)
        return load_program(Path(name), trust), None
    if separator:
        return _imported(name, weights, classes)
    for kind in _FAMILIES:
        if _is_known(kind, name):
            return _family(kind, name, weights, classes)
    raise InputError(f"--model {name} names nothing; expected {_EXPECTED}")


_FAMILIES = ("timm", "transformers")


def _is_known(kind: str, name: str) -> bool:
    # Imported late: each imports a large package.
    if kind == "timm":
        from gradood.integrations.timm import is_timm_name

        return is_timm_name(name)
    from gradood.integrations.transformers import is_transformers_name

    return is_transformers_name(name)


def _family(
    kind: str, name: str, weights: str | Path | None, classes: int | None
) -> tuple[nn.Module, Transform | None]:
    if weights is None and not (Path(name) / "config.json").is_file():
        raise InputError(
            f"--model {name} is an architecture; give its weights as --weights FILE (safetensors, "
            "or what torch.save wrote of model.state_dict())"
        )
    if kind == "timm":
        from gradood.integrations.timm import timm_model

        return timm_model(name, weights=weights, classes=classes)
    from gradood.integrations.transformers import transformers_model

    return transformers_model(name, weights=weights, classes=classes)


def _embedded(
    weights: str | Path | None, classes: int | None
) -> tuple[nn.Module, Transform | None]:
    from gradood.data import embedded_classifier

    _refuse("the embedded classifier", weights=weights, classes=classes)
    return embedded_classifier(), Preprocessing(input_size=(1, 28, 28))


def _imported(
    name: str, weights: str | Path | None, classes: int | None
) -> tuple[nn.Module, Transform | None]:
    _refuse(name, classes=classes)
    found = named("--model", name, _EXPECTED)
    found = found if isinstance(found, nn.Module) else found()
    model, transform = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(model, nn.Module) or not (transform is None or callable(transform)):
        raise InputError(
            f"--model {name} gives {type(found).__name__}, expected a torch.nn.Module, or one and "
            "a function from pictures to tensors"
        )
    if weights is not None:
        load_weights(model, weights)
    return model, transform


def _refuse(name: str, **options: object) -> None:
    given = [f"--{option}" for option, value in options.items() if value is not None]
    if given:
        raise InputError(f"{' and '.join(given)} cannot be used with {name}")


def find_device(name: str) -> torch.device:
    """The device of that name, or for "auto" a GPU where there is one.

    Raises:
        InputError: This machine has none such.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device, dtype=torch.float32)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: {reason}") from error
    return device


def named(option: str, name: str, expected: str) -> Any:
    """What ``module:attribute`` is; modules of the current folder are found, too."""
    module, _, attribute = name.partition(":")
    if not getattr(sys.flags, "safe_path", False) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as under python -m; the gradood script has its own folder
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{option} {name}: {error}; expected {expected}") from error
