"""Detectors as files: safetensors with a JSON header, never pickle."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gradood.detectors.threshold import Calibration
from gradood.errors import CheckpointError, InputError

_FORMAT = 1
_KEY = "gradood"
#: Scores of ``calibrate``, beside what was learned.
_CALIBRATION = "calibration scores"
#: Values kept of each tensor of weights, and by how much of their norm they may differ: rounding
#: to bfloat16 changes them by 0.002, training by as much as it moves them.
_SAMPLED, _SAME_WEIGHTS = 16, 0.02
#: Wrappers, by the names of their classes, and where they keep the module that they wrap.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "GradSampleModule": "_module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
}


@dataclass(frozen=True)
class Contents:
    """What a file says of a detector, apart from the model that it belongs to.

    Attributes:
        kind: Name of the detector's class.
        settings: Keyword arguments that construct it again.
        learned: Tensors by name.
        threshold: None without one.
        calibration: How the threshold was chosen; None without one, or where it was assigned.
        calibration_scores: Float64 ``[n]`` of the inputs that it was chosen by.
        fitted_count: How many normal inputs ``fit`` saw, where it learns from any.
    """

    kind: str
    settings: dict[str, Any]
    learned: dict[str, Tensor]
    threshold: float | None = None
    calibration: Calibration | None = None
    calibration_scores: Tensor | None = None
    fitted_count: int | None = None


def pack(contents: Contents, model: nn.Module) -> bytes:
    """The bytes of a file."""
    settings, own = dict(contents.settings), own_names(model)
    if settings.get("parameters") is not None:
        settings["parameters"] = [own.get(name, name) for name in settings["parameters"]]
    header = {
        "format": _FORMAT,
        "class": contents.kind,
        "version": _package_version(),
        "settings": {name: encode(value) for name, value in settings.items()},
        "threshold": contents.threshold,
        "calibration": contents.calibration and asdict(contents.calibration),
        "fitted_on": contents.fitted_count,
        "model": _architecture(model, own),
        "weights": _sampled_weights(model, own),
    }
    tensors = {n: tensor.detach().cpu().contiguous() for n, tensor in contents.learned.items()}
    if contents.calibration is not None and contents.calibration_scores is not None:
        tensors[_CALIBRATION] = contents.calibration_scores
    return save(tensors, metadata={_KEY: json.dumps(header)})


def read(path: str | Path, model: nn.Module) -> Contents:
    """Read a file, and compare the model that it belongs to with ``model``.

    Raises:
        CheckpointError: As ``gradood.load``.
    """
    header = _header(path)
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
    names = _names_as_saved(model, header["model"])
    _check_architecture(path, header["model"], _architecture(model, names))
    _check_weights(path, header.get("weights", {}), _sampled_weights(model, names))
    settings = {name: decode(value) for name, value in header["settings"].items()}
    if settings.get("parameters") is not None:
        given = {own: name for name, own in names.items()}
        chosen = settings["parameters"]
        settings["parameters"] = [given.get(n) or given.get(plain_name(n), n) for n in chosen]
    calibration = header.get("calibration")  # files of older versions do not say
    return Contents(
        kind=header["class"],
        settings=settings,
        calibration_scores=state.pop(_CALIBRATION, None),
        learned=state,
        threshold=None if header["threshold"] is None else float(header["threshold"]),
        calibration=None if calibration is None else Calibration(**calibration),
        fitted_count=header.get("fitted_on"),  # nor do they say this
    )


def read_header(path: str | Path) -> dict[str, Any]:
    """What a file says of its detector, without a model: class, settings, threshold, version.

    Raises:
        CheckpointError: The file is missing, damaged or not one of ours.
    """
    with damage_named(path):
        return _header(path)


def _header(path: str | Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
    if header["format"] != _FORMAT:
        raise CheckpointError(
            f"{path} has format {header['format']}, this gradood reads format {_FORMAT}; "
            f"it was written by gradood {header['version']}"
        )
    return header


@contextmanager
def damage_named(path: str | Path) -> Iterator[None]:
    """Whatever a damaged file raises as a ``CheckpointError``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is not a detector that gradood saved ({type(error).__name__}: {error})"
        ) from error


def _architecture(model: nn.Module, names: Mapping[str, str]) -> dict[str, list[int]]:
    return {names[name]: list(parameter.shape) for name, parameter in model.named_parameters()}


def own_names(model: nn.Module) -> dict[str, str]:
    """Names of parameters and buffers -> those without what wrappers put before or into them.

    A model has the same names compiled, whole or in part, and inside ``DataParallel`` or another
    wrapper that holds it.
    """
    prefix, inner = "", model
    while (child := _wrapped(inner)) is not None:
        prefix, inner = f"{prefix}{child}.", getattr(inner, child)
    tensors = itertools.chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    return {name: plain_name(name.removeprefix(prefix)) for name, _ in tensors}


def plain_name(name: str) -> str:
    """A name without what ``torch.compile`` puts into it."""
    return name.replace("_orig_mod.", "")


def _wrapped(model: nn.Module) -> str | None:
    """Name of the module that a wrapper holds, or None where ``model`` is no wrapper."""
    found = (_WRAPPERS[kind.__name__] for kind in type(model).mro() if kind.__name__ in _WRAPPERS)
    return next(found, None)


def _names_as_saved(model: nn.Module, saved: Mapping[str, Any]) -> dict[str, str]:
    """``own_names``, or all names as they are where a file has them so: older ones do."""
    own = own_names(model)
    given = {name: name for name in own}
    same = {name for name, _ in model.named_parameters()} == saved.keys()
    return given if same else own


def _check_architecture(
    path: str | Path, saved: Mapping[str, list[int]], present: Mapping[str, list[int]]
) -> None:
    differences = [f"{name} is missing" for name in saved if name not in present]
    differences += [f"{name} is not in the file" for name in present if name not in saved]
    differences += [
        f"{name} is {present[name]}, in the file {shape}"
        for name, shape in saved.items()
        if name in present and present[name] != shape
    ]
    if differences:
        shown = "; ".join(differences[:5])
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise CheckpointError(
            f"{path} belongs to a model with other parameters: in the model given, {shown}{more}"
        )


def _sampled_weights(model: nn.Module, names: Mapping[str, str]) -> dict[str, list[float]]:
    """Some values of every parameter and of every statistic, evenly spread."""
    sampled = {}
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            flat = tensor.detach().reshape(-1)
            values = flat[:: -(-len(flat) // _SAMPLED)].double().cpu()
            sampled[names.get(name, name)] = [float(f"{value:.6g}") for value in values.tolist()]
    return sampled


def _check_weights(
    path: str | Path, saved: Mapping[str, list[float]], present: Mapping[str, list[float]]
) -> None:
    changed = []
    for name in saved.keys() & present.keys():
        before, now = (
            torch.tensor(values[name], dtype=torch.float64, device="cpu")
            for values in (saved, present)
        )
        if not torch.dist(before, now) <= _SAME_WEIGHTS * before.norm() + 1e-6:
            changed.append(name)
    if changed:
        raise CheckpointError(
            f"{path} was fitted on other weights: {len(changed)} of {len(saved)} tensors differ, "
            f"such as {min(changed)}. Load the weights it was fitted on, or fit it again"
        )


def encode(value: Any) -> Any:
    """A setting as JSON; a Tensor becomes a tagged list."""
    if isinstance(value, Tensor):
        exact = value.detach().double() if value.is_floating_point() else value.detach()
        if not value.is_complex():
            return {"tensor": exact.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise InputError(f"a setting of type {type(value).__name__} cannot be saved: {value!r}")


def decode(value: Any) -> Any:
    """The inverse of ``encode``."""
    if isinstance(value, dict):
        dtype = getattr(torch, value["dtype"].removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(
                f"a setting is {value['dtype']}, which torch {torch.__version__} does not know"
            )
        exact = torch.float64 if dtype.is_floating_point else dtype
        return torch.tensor(value["tensor"], dtype=exact, device="cpu").to(dtype)
    return [decode(item) for item in value] if isinstance(value, list) else value


def _package_version() -> str:
    try:
        return version("gradood")
    except PackageNotFoundError:
        return "unknown"
