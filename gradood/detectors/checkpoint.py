"""Detectors as files: safetensors with a JSON header, never pickle."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gradood.detectors.threshold import Calibration
from gradood.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from gradood.detectors.base import Detector

#: Every detector by its class name: how ``load`` finds it.
REGISTRY: dict[str, type[Detector]] = {}

_FORMAT = 1
_KEY = "gradood"
#: Values kept of each tensor of weights, and by how much of their norm they may differ: rounding
#: to bfloat16 changes them by 0.002, training by as much as it moves them.
_SAMPLED, _SAME_WEIGHTS = 16, 0.02
_DTYPES = {str(dtype): dtype for dtype in (torch.float64, torch.float32, torch.int64, torch.bool)}


def write(detector: Detector, path: str | Path) -> None:
    """Write ``detector`` to ``path``, which is replaced only once the file is complete."""
    header = {
        "format": _FORMAT,
        "class": type(detector).__name__,
        "version": _package_version(),
        "settings": {name: encode(value) for name, value in detector._settings().items()},
        "threshold": detector._threshold,
        "calibration": detector.calibration and detector.calibration._asdict(),
        "model": _architecture(detector.model),
        "weights": _sampled_weights(detector.model),
    }
    learned = detector._require_fitted()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in learned.items()}
    partial = Path(path).with_name(Path(path).name + ".partial")
    save_file(tensors, partial, metadata={_KEY: json.dumps(header)})
    os.replace(partial, path)


def load(path: str | Path, model: nn.Module) -> Detector:
    """Read a detector that ``Detector.save`` wrote, for the classifier it was fitted on.

    Scores mean nothing for other weights than those it was fitted on. So names and shapes of all
    parameters are compared, and some values of each, up to what a change of dtype makes of them.

    Args:
        path: A file written by ``save``.
        model: The classifier, on the device where scores shall be computed.

    Returns:
        The fitted detector, with its threshold if it had one.

    Raises:
        CheckpointError: The file is missing, damaged or not one of ours, or the detector belongs to
            a model with other parameters or weights; the message names what differs.
    """
    with _damage_named(path):
        header = _header(path)
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
        _check_architecture(path, header["model"], _architecture(model))
        _check_weights(path, header.get("weights", {}), _sampled_weights(model))
        return _rebuild(path, header, state, model)


def read_header(path: str | Path) -> dict[str, Any]:
    """What a file says of its detector, without a model: class, settings, threshold, version.

    Raises:
        CheckpointError: The file is missing, damaged or not one of ours.
    """
    with _damage_named(path):
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
def _damage_named(path: str | Path) -> Iterator[None]:
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


def _rebuild(
    path: str | Path, header: Mapping[str, Any], state: Mapping[str, Tensor], model: nn.Module
) -> Detector:
    classes = {name: cls for name, cls in REGISTRY.items() if not inspect.isabstract(cls)}
    if header["class"] not in classes:
        raise CheckpointError(
            f"{path} holds a {header['class']}, which is not among the known detectors: "
            f"{', '.join(sorted(classes))}. If it is your own class, import its module first"
        )
    detector = classes[header["class"]](
        model, **{name: decode(value) for name, value in header["settings"].items()}
    )
    if state.keys() != detector.LEARNED:
        raise CheckpointError(
            f"{path} is damaged: it holds {sorted(state)}, expected {sorted(detector.LEARNED)}"
        )
    detector._restore({name: tensor.to(detector._device) for name, tensor in state.items()})
    detector._threshold = None if header["threshold"] is None else float(header["threshold"])
    calibration = header.get("calibration")  # files of older versions do not say
    detector._calibration = None if calibration is None else Calibration(**calibration)
    return detector


def _architecture(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in _plain(model).named_parameters()}


def _plain(model: nn.Module) -> nn.Module:
    """What ``torch.compile`` wrapped, which has the names without its prefix."""
    plain: nn.Module = getattr(model, "_orig_mod", model)
    return plain


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


def _sampled_weights(model: nn.Module) -> dict[str, list[float]]:
    """Some values of every parameter and of every statistic, evenly spread."""
    sampled = {}
    for name, tensor in _plain(model).state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            flat = tensor.detach().reshape(-1)
            values = flat[:: -(-len(flat) // _SAMPLED)].double().cpu()
            sampled[name] = [float(f"{value:.6g}") for value in values.tolist()]
    return sampled


def _check_weights(
    path: str | Path, saved: Mapping[str, list[float]], present: Mapping[str, list[float]]
) -> None:
    changed = []
    for name in saved.keys() & present.keys():
        before, now = (
            torch.tensor(values[name], dtype=torch.float64) for values in (saved, present)
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
        return {"tensor": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise InputError(f"a setting of type {type(value).__name__} cannot be saved: {value!r}")


def decode(value: Any) -> Any:
    """The inverse of ``encode``."""
    if isinstance(value, dict):
        return torch.tensor(value["tensor"], dtype=_DTYPES[value["dtype"]])
    return [decode(item) for item in value] if isinstance(value, list) else value


def _package_version() -> str:
    try:
        return version("gradood")
    except PackageNotFoundError:
        return "unknown"
