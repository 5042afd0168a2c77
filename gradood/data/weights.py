"""Weights from files, without ever running what a pickle asks for."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from gradood.errors import CheckpointError

Network = TypeVar("Network", bound=nn.Module)

#: Keys under which training scripts save the weights.
_NESTED = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
#: Prefixes that wrappers for training put before every name.
_PREFIXES = ("module.", "_orig_mod.")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name: from safetensors, or from ``torch.save`` with ``weights_only=True``.

    Raises:
        CheckpointError: The file is missing or damaged, or a pickle that holds, or does, more than
            tensors; nothing of it was executed.
    """
    if Path(path).is_dir():
        raise CheckpointError(f"{path} is a folder; give a file of weights")
    try:
        return _tensors(path, load_file(path))
    except OSError as error:
        raise CheckpointError(f"cannot read the weights {path}: {error}") from error
    except SafetensorError:
        pass  # not safetensors: a state dict, then
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it is a pickle that holds more than tensors, and loading it could "
            "run code. Save model.state_dict(), best with safetensors.torch.save_file"
        ) from error
    except Exception as error:  # whatever a damaged archive raises
        raise CheckpointError(
            f"{path} is neither safetensors nor a state dict ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'empty'})"
        ) from error
    return _tensors(path, loaded)


def load_network(
    path: str | Path, make: Callable[[Mapping[str, str], Mapping[str, Tensor]], Network], what: str
) -> Network:
    """A network that ``benchmarks/train_WHAT.py`` wrote: on the CPU, in float32 and eval mode.

    Args:
        path: Safetensors.
        make: From the metadata and the tensors to the network.
        what: For errors.

    Raises:
        CheckpointError: The file is missing, damaged, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}
        with torch.device("meta"):  # no random weights, nor anybody's default dtype
            network = make(metadata, tensors)
        network.load_state_dict(tensors, assign=True)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"Cannot read {path}: it is no {what} of this package ({error}). Expected a file that "
            f"benchmarks/train_{what}.py wrote"
        ) from error
    return network.eval()


def _tensors(path: str | Path, loaded: Any) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    named = isinstance(loaded, Mapping) and all(isinstance(name, str) for name in loaded)
    if not named or not loaded or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise CheckpointError(
            f"{path} holds a {type(loaded).__name__}, expected tensors by parameter name as "
            "model.state_dict() gives"
        )
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in loaded):
            loaded = {name.removeprefix(prefix): tensor for name, tensor in loaded.items()}
    return dict(loaded)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill every parameter and buffer of ``model`` from a file; nothing missing, nothing left.

    Raises:
        CheckpointError: As ``read_state_dict``, or names or shapes differ from the model's.
    """
    given = read_state_dict(path)
    expected = model.state_dict()
    # Files of older PyTorch versions do not count the batches that normalisation has seen.
    problems = [
        f"{name} is missing"
        for name in expected
        if name not in given and not name.endswith("num_batches_tracked")
    ]
    problems += [f"{name} is not in the model" for name in given if name not in expected]
    problems += [
        f"{name} is {list(given[name].shape)}, in the model {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"the weights {path} do not fit the model: {'; '.join(problems[:5])}{more}"
        )
    tied = [name for name, tensor in expected.items() if name not in given]
    model.load_state_dict({**{name: expected[name] for name in tied}, **given})
