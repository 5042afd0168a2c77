"""Why no GPU can be used here: the layers between Python and it, from the top down."""

from __future__ import annotations

import shutil
import subprocess
from typing import NamedTuple

import torch

from gradood.errors import first_line

#: What can be missing, in the words of ``gradood info``.
NO_BUILD, NO_DRIVER, NO_GPU, NO_COMPILER, VERSION, OTHER = (
    "PyTorch without CUDA",
    "no driver",
    "no GPU",
    "no compiler",
    "unsupported version",
    "failure",
)


class Problem(NamedTuple):
    """What is missing, and a sentence that says what to do."""

    kind: str
    sentence: str


def without_gpu() -> Problem | None:
    """Why PyTorch sees no GPU, or None if it sees one."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return Problem(NO_BUILD, "this PyTorch was built without CUDA; install a build with it")
    try:
        torch.cuda.init()
    except Exception as error:  # PyTorch's own words, by its version and the driver's
        said = first_line(error)
    else:
        said = "PyTorch counts none"
    if "driver" in said.lower():
        return Problem(NO_DRIVER, f"no driver that this PyTorch can use ({said})")
    return Problem(NO_GPU, f"PyTorch finds a driver and no GPU ({said}); see nvidia-smi")


def of_driver(error: BaseException) -> Problem:
    """What kept Triton's driver, which compiles its launchers with a C compiler, from loading."""
    missing = without_gpu()
    if missing is not None:
        return missing
    said = first_line(error)
    if isinstance(error, subprocess.CalledProcessError):
        name = str(error.cmd[0] if isinstance(error.cmd, (list, tuple)) else error.cmd)
        fix = "install Python's headers (python3-dev)" if shutil.which(name) else f"install {name}"
        return Problem(NO_COMPILER, f"Triton's launcher does not build with {name}; {fix}")
    if isinstance(error, FileNotFoundError) or "compiler" in said.lower():
        return Problem(
            NO_COMPILER, f"Triton finds no C compiler for its launcher; install gcc, or set CC "
            f"({said})"
        )  # fmt: skip
    if "libcuda" in said:
        return Problem(NO_DRIVER, f"Triton finds no NVIDIA driver ({said})")
    if "active drivers" in said:
        return Problem(NO_GPU, f"Triton has no driver for the GPU that PyTorch sees ({said})")
    return Problem(OTHER, f"Triton's driver does not load ({type(error).__name__}: {said})")
