"""The kernels of another processor, compiled here and run under an emulator, against the reference.

    python -m benchmarks.emulated [--compiler aarch64-linux-gnu-g++] [--emulator qemu-aarch64]

Debian has both: ``g++-aarch64-linux-gnu`` and ``qemu-user``. Every operator over the shapes of
``kernel_calls`` in two memory layouts and two dtypes; about a minute. The generic path alone:
``baseline`` is what processors other than x86 have.
"""

from __future__ import annotations

import argparse
import itertools
import struct
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_calls import CALLS, Call, channels_last
from gradood.ops import cpp_backend

ROOT = Path(__file__).parents[1]
UNITS = ("module", "cpu", "parallel", "geometry", "tile_plan", "votes")
KERNELS = ("isa_baseline", "noise_baseline")
#: As ``setup.py``, but for speed.
FLAGS = "-std=c++17 -O1 -static -Wno-psabi -ffp-contract=fast -DPy_LIMITED_API=0x030A0000".split()
#: Of a norm, relative to the largest of its operator's.
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 5e-4}


class Recorder:
    """The kernels, and what they were called with."""

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels
        self.calls: list[tuple[str, tuple[float, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*numbers: float) -> None:
            self.calls.append((name, numbers))
            getattr(self.kernels, name)(*numbers)

        return call


def compiled(compiler: str, folder: Path) -> Path:
    """The kernels and the program that calls them."""
    program = folder / "run"
    sources = [f"csrc/{unit}.cpp" for unit in (*UNITS, *KERNELS)] + ["benchmarks/emulated.cpp"]
    include = sysconfig.get_paths()["include"]
    command = [compiler, *FLAGS, "-Icsrc", f"-I{include}", *sources, "-o", str(program)]
    subprocess.run(command, cwd=ROOT, check=True)
    return program


def changed_calls() -> dict[str, Call]:
    """Every operator call, in two layouts and two dtypes."""
    layouts = {"contiguous": lambda t: t, "channels last": channels_last}
    sums = {
        f"channel sums {shape}": Call("channel_sums", (torch.randn(shape) + 0.5,))
        for shape in ((2, 1, 1), (3, 17, 41), (2, 41, 17), (2, 3, 1201))
    }
    found = {}
    for (name, call), layout, dtype in itertools.product(
        (CALLS | sums).items(), layouts, TOLERANCE
    ):
        changed = call.map(lambda t, dtype=dtype: t.to(dtype)).map(layouts[layout])
        found[f"{name}, {layout}, {str(dtype)[6:]}"] = changed
    for (name, call), layout in itertools.product(_batch_norms().items(), layouts):
        x, *layer = call.arguments  # the kernel writes float32 alone
        found[f"{name}, {layout}"] = Call(call.op, (layouts[layout](x), *layer))
    return found


def _batch_norms() -> dict[str, Call]:
    """Layers that are measured while they are made, with and without scale and shift."""
    calls = {}
    for size in ((2, 1, 1, 1), (3, 17, 5, 8), (2, 70, 3, 3), (2, 3, 40, 31), (5, 33)):
        channels = size[1]
        mean, variance = torch.randn(channels), torch.rand(channels) + 0.1
        for layer in ((torch.randn(channels), torch.randn(channels)), (None, None)):
            name = f"batch norm {size}, {'plain' if layer[0] is None else 'scaled'}"
            arguments = (torch.randn(size), mean, variance, *layer, 1e-3)
            calls[name] = Call("batch_norm_sums", arguments)
    return calls


def recorded(call: Call) -> tuple[list[tuple[str, tuple[float, ...]]], list[Tensor], int]:
    """A call's kernels, the memory that it works on, and how many pieces of it are results."""
    recorder = Recorder(cpp_backend._kernels)
    cpp_backend._kernels = recorder  # type: ignore[assignment]
    try:
        results = getattr(cpp_backend, call.op)(*call.arguments)
    finally:
        cpp_backend._kernels = recorder.kernels
    results = [r for r in (results if isinstance(results, tuple) else (results,)) if r.numel()]
    given = [t for t in call.arguments if isinstance(t, Tensor)]
    return recorder.calls, [*results, *given], len(results)


def packed(kernel: str, numbers: tuple[float, ...], memory: list[Tensor], results: int) -> bytes:
    """A kernel's name, the memory, and its numbers, addresses as places in that."""
    storages = [t.untyped_storage() for t in memory]
    parts = [_bytes(kernel.encode()), struct.pack("Q", len(storages))]
    for i, storage in enumerate(storages):
        parts.append(_bytes(bytes(len(storage)) if i < results else bytes(storage)))
    parts.append(struct.pack("Q", len(numbers)))
    for number in numbers:
        if isinstance(number, float):
            parts.append(struct.pack("qqd", -1, 0, number))
            continue
        buffer, place = -1, int(number)
        for i, storage in enumerate(storages):
            if storage.data_ptr() <= place < storage.data_ptr() + len(storage):
                buffer, place = i, place - storage.data_ptr()
                break
        assert buffer >= 0 or place < 2**32, f"{kernel} was given memory of its own"
        parts.append(struct.pack("qqd", buffer, place, 0.0))
    return b"".join(parts)


def _bytes(data: bytes) -> bytes:
    return struct.pack("Q", len(data)) + data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="aarch64-linux-gnu-g++")
    parser.add_argument("--emulator", default="qemu-aarch64")
    options = parser.parse_args()
    cpp_backend.use_instruction_set("baseline")
    torch.set_num_threads(1)
    calls, messages, layouts = changed_calls(), [], []
    for call in calls.values():
        ((kernel, numbers),), memory, results = recorded(call)
        messages.append(packed(kernel, numbers, memory, results))
        layouts.append((memory, results))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "calls").write_bytes(struct.pack("Q", len(messages)) + b"".join(messages))
        program = compiled(options.compiler, folder)
        command = [options.emulator, program, folder / "calls", folder / "results"]
        subprocess.run(list(map(str, command)), check=True)
        data = bytearray((folder / "results").read_bytes())
    wrong, worst, start = [], 0.0, 0
    for (name, call), (memory, results) in zip(calls.items(), layouts, strict=True):
        found = []
        for i, t in enumerate(memory):
            size = len(t.untyped_storage())
            if i < results:
                whole = torch.frombuffer(
                    data, dtype=t.dtype, count=size // t.element_size(), offset=start
                )
                found.append(whole.as_strided(t.shape, t.stride(), t.storage_offset()))
            start += size
        dtype = next(t.dtype for t in call.arguments if t.is_floating_point())
        expected = [e for e in call.expected() if e.numel()]
        for f, e in zip(found, expected, strict=True):
            error = float((f.double() - e).abs().max() / e.abs().max().clamp_min(1e-30))
            worst = max(worst, error)
            rounding = 2**-8 if f.dtype == torch.bfloat16 else 0.0  # of what is written in it
            if not error <= TOLERANCE[dtype] + rounding:
                wrong.append(f"{name}: {error:.1e}")
    print(f"{len(calls)} calls, {len(wrong)} wrong, largest error {worst:.1e}")
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
