"""What a long computation has done so far, in a file that belongs to it and to no other."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gradood.errors import CheckpointError
from gradood.writing import write_file

_FORMAT = 1


class StateFile:
    """Named tensors as safetensors with a JSON header, never pickle.

    Args:
        path: Of the file; None writes and finds nothing.
        key: Of the header: which kind of computation.
        identity: What the results depend on, as JSON values.
        what: The computation in words, for errors.
        every: Seconds after which a file is ``due`` to be written again.
    """

    def __init__(
        self,
        path: str | Path | None,
        key: str,
        identity: Mapping[str, Any],
        what: str,
        every: float = 60.0,
    ) -> None:
        self._path = None if path is None else Path(path)
        self._key, self._what, self._every = key, what, every
        self._identity = json.loads(json.dumps(identity))
        self._written = time.monotonic()

    def read(self) -> dict[str, Tensor] | None:
        """The tensors, or None if there is no file yet.

        Raises:
            CheckpointError: It is no such file, or belongs to another run.
        """
        if self._path is None or not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                identity = json.loads((file.metadata() or {})[self._key])["identity"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise self.damaged(error) from error
        self._check(identity)
        return tensors

    @property
    def due(self) -> bool:
        """Whether there is a file to write, and enough time has passed since the last time."""
        return self._path is not None and time.monotonic() - self._written >= self._every

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the file by one with these tensors."""
        if self._path is None:
            return
        header = {self._key: json.dumps({"format": _FORMAT, "identity": self._identity})}
        on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_file(self._path, save(on_cpu, metadata=header))
        self._written = time.monotonic()

    def damaged(self, error: Exception) -> CheckpointError:
        """What to raise if the tensors are not those expected."""
        return CheckpointError(
            f"{self._path} is no state of {self._what} ({error}); remove it, or choose another path"
        )

    def _check(self, saved: Mapping[str, Any]) -> None:
        names = dict.fromkeys((*saved, *self._identity))
        differing = [name for name in names if saved.get(name) != self._identity.get(name)]
        if differing:
            shown = ", ".join(
                f"{name} ({saved.get(name)} there, {self._identity.get(name)} here)"
                for name in differing
            )
            raise CheckpointError(
                f"{self._path} is of another run: {shown} differ. Use the same arguments, or "
                "another path"
            )
