"""Detectors as files: safetensors with a JSON header, never pickle."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gradood.detectors.threshold import Calibration
from gradood.errors import CheckpointError, InputError
from gradood.writing import write_file

if TYPE_CHECKING:
    from gradood.detectors.base import Detector

#: Every detector by its class name: how ``load`` finds it.
REGISTRY: dict[str, type[Detector]] = {}

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


def write(detector: Detector, path: str | Path) -> None:
    """Write ``detector`` to ``path``, which is replaced only once the file is complete."""
    write_file(path, content(detector))


def content(detector: Detector) -> bytes:
    """What a file of ``detector`` holds."""
    settings, own = detector._settings(), own_names(detector.model)
    if settings.get("parameters") is not None:
        settings["parameters"] = [own.get(name, name) for name in settings["parameters"]]
    header = {
        "format": _FORMAT,
        "class": type(detector).__name__,
        "version": _package_version(),
        "settings": {name: encode(value) for name, value in settings.items()},
        "threshold": detector._threshold,
        "calibration": detector.calibration and detector.calibration._asdict(),
        "fitted_on": detector._fitted_count,
        "model": _architecture(detector.model, own),
        "weights": _sampled_weights(detector.model, own),
    }
    learned = detector._require_fitted()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in learned.items()}
    if detector.calibration is not None and detector._calibration_scores is not None:
        tensors[_CALIBRATION] = detector._calibration_scores
    return save(tensors, metadata={_KEY: json.dumps(header)})


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
        names = _names_as_saved(model, header["model"])
        _check_architecture(path, header["model"], _architecture(model, names))
        _check_weights(path, header.get("weights", {}), _sampled_weights(model, names))
        return _rebuild(path, header, state, model, names)


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
    path: str | Path,
    header: Mapping[str, Any],
    state: Mapping[str, Tensor],
    model: nn.Module,
    names: Mapping[str, str],
) -> Detector:
    classes = {name: cls for name, cls in REGISTRY.items() if not inspect.isabstract(cls)}
    if header["class"] not in classes:
        raise CheckpointError(
            f"{path} holds a {header['class']}, which is not among the known detectors: "
            f"{', '.join(sorted(classes))}. If it is your own class, import its module first"
        )
    settings = {name: decode(value) for name, value in header["settings"].items()}
    if settings.get("parameters") is not None:
        given = {own: name for name, own in names.items()}
        chosen = settings["parameters"]
        settings["parameters"] = [given.get(n) or given.get(plain_name(n), n) for n in chosen]
    kind = classes[header["class"]]
    detector = kind(model, **kind._of_earlier_version(settings))
    kept = dict(state)
    detector._calibration_scores = kept.pop(_CALIBRATION, None)
    if kept.keys() != detector.LEARNED:
        raise CheckpointError(
            f"{path} is damaged: it holds {sorted(state)}, expected {sorted(detector.LEARNED)}"
        )
    detector._restore({name: tensor.to(detector._device) for name, tensor in kept.items()})
    detector._threshold = None if header["threshold"] is None else float(header["threshold"])
    detector._fitted_count = header.get("fitted_on")  # files of older versions do not say
    calibration = header.get("calibration")  # nor do they say this
    detector._calibration = None if calibration is None else Calibration(**calibration)
    return detector


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
