"""Items -> tensors, a bounded number ahead of the model, in order."""

from __future__ import annotations

import io
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gradood.data.files.pictures import ROOM, picture_from
from gradood.data.files.source import Item, Position, Source
from gradood.data.optional import require
from gradood.errors import InputError
from gradood.inputs import Inputs, require_one_tensor
from gradood.progress import cores
from gradood.text import printable

if TYPE_CHECKING:
    from gradood.data.preprocessing import Transform

#: Memory for inputs that wait for the model, about; at least a few wait in any case.
_AHEAD_BYTES = 128 << 20
_MOST_AHEAD = 1024
#: Inputs that a thread reads in one go, at most.
_TASK = 32


@dataclass(frozen=True, slots=True)
class Decoded:
    """An input that was read: ``tensor``, or, where that failed, ``error``.

    Attributes:
        id: The item's.
        tensor: One input of the model; of several tensors, a batch of one.
        error: What is wrong with it.
        after: The position at which the next one stands.
    """

    id: str
    tensor: Tensor | Inputs | None
    error: str | None
    after: Position


def decoded(
    items: Iterable[tuple[Item, Position]], transform: Transform, *, workers: int | None = None
) -> Iterator[Decoded]:
    """Read and transform ``items`` in threads, a few ahead, and yield them in their order.

    Args:
        items: What to read, as ``Source.placed`` gives it.
        transform: Picture -> tensor. Arrays of uint8 that look like pictures go through it too;
            other arrays and tensors are inputs as they are.
        workers: Threads; None for one a core, at most 8.
    """
    workers = workers or min(8, cores())
    # Several inputs a task, since handing over a task takes as long as reading a small picture:
    # one at first, until it is known how large inputs are.
    several, ahead = 1, 2 * workers
    waiting: deque[tuple[Future[list[Decoded]], int]] = deque()
    held = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="gradood-decode")
    remaining = iter(items)
    try:
        while task := _task(remaining, several):
            size = sum(item.size for item, _ in task)
            waiting.append((pool.submit(_decode, task, transform), size))
            held += size
            while waiting and (len(waiting) * several >= ahead or held > _AHEAD_BYTES):
                done, size = waiting.popleft()
                found = done.result()
                held -= size
                del done, task
                yield from found
                ahead = _ahead(found[-1].tensor, workers)
                several = max(1, min(_TASK, ahead // (2 * workers)))
                task = []
        while waiting:
            yield from waiting.popleft()[0].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def first_inputs(source: Source, transform: Transform, count: int) -> Tensor:
    """The first ``count`` inputs of a source as one tensor ``[N, …]``; see ``named_inputs``."""
    return named_inputs(source, transform, count)[1]


def named_inputs(source: Source, transform: Transform, count: int) -> tuple[list[str], Tensor]:
    """Names of the first ``count`` inputs of a source, and the inputs as one tensor ``[N, …]``."""
    names: list[str] = []
    found: list[Tensor] = []
    for item in itertools.islice(decoded(source.placed(), transform), count):
        if item.tensor is None:
            raise InputError(f"{item.id}: {item.error}")
        tensor = require_one_tensor(item.tensor)
        if found and tensor.shape != found[0].shape:
            raise InputError(
                f"{item.id} has the shape {list(tensor.shape)}, the others {list(found[0].shape)}"
            )
        names.append(item.id)
        found.append(tensor)
    if not found:
        raise InputError("there are no inputs")
    return names, torch.stack(found)


def as_input(value: Any, transform: Transform) -> Tensor | Inputs:
    """The model's input for a picture, an array or a tensor, or for a mapping of such."""
    if isinstance(value, Mapping):
        leaves = {}
        for name, part in value.items():
            try:
                leaves[name] = _as_tensor(part, transform)[None]
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        return Inputs.of(leaves)
    return _as_tensor(value, transform)


def _as_tensor(value: Any, transform: Transform) -> Tensor:
    if isinstance(value, bytes | bytearray | memoryview):
        value = picture_from(io.BytesIO(value))
    if isinstance(value, np.ndarray):
        value = _from_numpy(value)
    if isinstance(value, Tensor):
        tensor = value if value.dtype != torch.uint8 else _from_bytes(value, transform)
    elif hasattr(value, "convert"):  # a picture of Pillow's, which may not be installed
        return transform(value)  # of bytes, so it is finite
    else:
        raise InputError(f"{type(value).__name__} is no input; expected a picture, array or tensor")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise InputError("it holds NaN or Inf")
    return tensor


def _task(items: Iterator[tuple[Item, Position]], several: int) -> list[tuple[Item, Position]]:
    """The next items: several, unless they are large."""
    task, size = [], 0
    for placed in itertools.islice(items, several):
        task.append(placed)
        size += placed[0].size
        if size > _AHEAD_BYTES // 8:
            break
    return task


def _decode(task: list[tuple[Item, Position]], transform: Transform) -> list[Decoded]:
    return [_decode_one(item, after, transform) for item, after in task]


def _decode_one(item: Item, after: Position, transform: Transform) -> Decoded:
    try:
        with ROOM.shared():
            return Decoded(item.id, as_input(item.load(), transform), None, after)
    except Exception as error:  # files may be damaged in every way there is
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Decoded(item.id, None, printable(reason), after)


#: Dtypes without arithmetic in PyTorch -> wider ones that hold the same numbers.
_WIDER = {"u2": np.int32, "u4": np.int64, "f16": np.float64, "f12": np.float64}


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """The same numbers in a tensor, whatever the order of bytes and the strides."""
    if array.dtype.kind not in "fiub":
        raise InputError(f"it holds {array.dtype}, expected numbers")
    native = array.dtype.newbyteorder("=")
    wanted = _WIDER.get(native.str[1:], native)
    array = np.ascontiguousarray(array, wanted).reshape(array.shape)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _from_bytes(pixels: Tensor, transform: Transform) -> Tensor:
    """``[H, W]``, ``[H, W, C]`` or ``[C, H, W]`` of 0…255, or a file, as the picture it is."""
    if pixels.dim() == 1 and len(pixels):
        return transform(picture_from(io.BytesIO(pixels.numpy().tobytes())))
    if pixels.dim() == 3 and pixels.shape[2] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = pixels.permute(1, 2, 0)
    channels = pixels.shape[2] if pixels.dim() == 3 else 1
    if pixels.dim() not in (2, 3) or channels not in (1, 3, 4) or 0 in pixels.shape:
        raise InputError(f"uint8 of shape {list(pixels.shape)} is no picture; expected [H, W, C]")
    pixels = pixels[:, :, 0] if pixels.dim() == 3 and channels == 1 else pixels
    image = require("PIL.Image", "data", "Reading pictures").fromarray(pixels.contiguous().numpy())
    return transform(image)


def _ahead(tensor: Tensor | Inputs | None, workers: int) -> int:
    size = tensor.nbytes if tensor is not None else 0
    return max(2 * workers, min(_MOST_AHEAD, _AHEAD_BYTES // max(size, 1)))
