"""Compile kernels for a GPU that is not there, and record their launches instead of executing them.

The launchers run as they are, on CPU tensors; Triton specialises and compiles exactly as it would
on the chosen GPU. What is left of a launch is the compiled kernel and the grid, which are checked
against the limits of the device.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from gradood.errors import BackendError, InputError

#: Shared memory that one block may use, in bytes.
SHARED_MEMORY = {
    "sm_75": 64 << 10,
    "sm_80": 163 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx942": 64 << 10,
    "gfx950": 160 << 10,
}
TARGETS = tuple(SHARED_MEMORY)
#: Those whose kernels are described in tests/kernels/resources.json.
DESCRIBED = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")
#: Largest grid along each axis.
GRID = (2**31 - 1, 65535, 65535)


class Launch(NamedTuple):
    """One launch that would have happened."""

    kernel: str
    grid: tuple[int, int, int]
    compiled: Any
    #: What the driver's launcher was told.
    arguments: tuple[Any, ...] = ()

    @property
    def told(self) -> tuple[Any, ...]:
        """What can be compared: tensors by how they lie."""
        of_tensors = (
            (tuple(a.shape), a.stride(), a.dtype) if isinstance(a, torch.Tensor) else a
            for a in self.arguments
        )
        return self.kernel, self.grid, self.compiled.hash, *of_tensors

    def is_instead_of(self, other: Launch) -> bool:
        """Whether it is the same launch of a kernel that was compiled otherwise."""
        same = self.kernel == other.kernel and len(self.arguments) == len(other.arguments)
        return (
            same
            and self.compiled is not other.compiled
            and all(map(_is_same, self.arguments, other.arguments))
        )


def _is_same(a: Any, b: Any) -> bool:
    return a is b or not isinstance(a, torch.Tensor) and bool(a == b)


#: What the driver's launcher is told before a kernel's arguments, the grid among it.
_OWN = 9
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def tool(name: str, *arguments: str) -> str:
    """The output of one of NVIDIA's tools that Triton brings."""
    command = [str(_TOOLS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spilled.

    Spilled registers live in local memory, whose size is that of the stack and of LOCAL.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = tool("cuobjdump", "-res-usage", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    assert found is not None, said
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


class _Launcher:
    """Stands where the driver's launcher would; Triton keeps one for every compiled kernel."""

    told: tuple[Any, ...] = ()

    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *told: Any) -> None:
        _Launcher.told = told


class _Utilities:
    def __init__(self, target: str) -> None:
        self._target = target

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY[self._target], "warpSize": 32}

    def load_binary(self, *arguments: Any) -> tuple[object, ...]:
        _, binary, *_ = arguments
        registers, spilled = usage(binary) if self._target.startswith("sm_") else (0, 0)
        # Module, function, registers, spills and, from Triton 3.4, the most threads.
        loaded = (object(), 0, registers, spilled // 4, 1024)
        return loaded if hasattr(triton, "knobs") else loaded[:4]


class _Driver:
    """As much of a Triton driver as compilation and launching ask for."""

    def __init__(self, name: str) -> None:
        cuda = name.startswith("sm_")
        architecture = int(name.removeprefix("sm_")) if cuda else name
        self._target = GPUTarget("cuda" if cuda else "hip", architecture, 32 if cuda else 64)
        self._device = -1 - TARGETS.index(name)
        self.utils = _Utilities(name)
        self.launcher_cls = _Launcher

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


@contextmanager
def dry(name: str) -> Iterator[list[Launch]]:
    """Record every kernel launched inside the block, compiled for the target ``name``.

    Results of the operators are uninitialised memory.

    Raises:
        InputError: The target is unknown.
        BackendError: Triton's interpreter is switched on, or a launch exceeds the device's limits.
    """
    from gradood.kernels.launch import INTERPRETING

    if name not in TARGETS:
        raise InputError(f"target {name!r} is unknown; use one of {', '.join(TARGETS)}")
    if INTERPRETING:
        raise BackendError("nothing is compiled in the interpreter; unset TRITON_INTERPRET")
    launches: list[Launch] = []
    before, run = vars(driver).copy(), JITFunction.run  # Triton 3.2 keeps it elsewhere than 3.8
    again = CompiledKernel.__getitem__

    def record(function: str, compiled: Any) -> None:
        grid, arguments = _Launcher.told[:3], _Launcher.told[_OWN:]
        made = Launch(function.strip("_"), grid, compiled, arguments)
        if launches and made.is_instead_of(launches[-1]):
            launches.pop()
        launches.append(made)
        _check(made, name)

    def recorded(function: Any, *arguments: Any, **options: Any) -> Any:
        compiled = run(function, *arguments, **options)
        record(function.__name__, compiled)
        return compiled

    def recorded_again(compiled: Any, grid: Any) -> Callable[..., None]:
        def launched(*arguments: Any) -> None:
            again(compiled, grid)(*arguments)
            record(compiled.name, compiled)

        return launched

    driver.set_active(_Driver(name))
    JITFunction.run, CompiledKernel.__getitem__ = recorded, recorded_again
    try:
        yield launches
    finally:
        JITFunction.run, CompiledKernel.__getitem__ = run, again
        vars(driver).update(before)


def _check(launch: Launch, name: str) -> None:
    if any(not 0 < size <= most for size, most in zip(launch.grid, GRID, strict=True)):
        raise BackendError(f"{launch.kernel}: a grid of {launch.grid} exceeds {GRID}")
    shared = launch.compiled.metadata.shared
    if shared > SHARED_MEMORY[name]:
        raise BackendError(
            f"{launch.kernel}: {shared} bytes of shared memory, {name} has {SHARED_MEMORY[name]}"
        )
