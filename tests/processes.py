"""Processes that begin with PyTorch imported: what costs each of them two seconds, once.

A server imports the packages below and forks for every request, so a child has its own modules,
environment and standard streams. gradood, Triton and torchvision are imported by the child. Tests
of what an import does start an interpreter of their own instead.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path

BEFOREHAND = ["torch", "scipy.stats", "safetensors.torch", "typer", "rich.table", "jinja2"]


def python(
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    folder: Path | str | None = None,
    timeout: float = 240,
) -> subprocess.CompletedProcess[str]:
    """``python -c CODE …`` or ``python -m MODULE …``, in this environment if none is given.

    Raises:
        subprocess.TimeoutExpired: It takes longer.
    """
    line = [str(argument) for argument in arguments]
    if not hasattr(os, "fork"):
        return subprocess.run(
            [sys.executable, *line], env=environment, cwd=folder, timeout=timeout,
            capture_output=True, text=True,
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as streams:
        paths = [os.path.join(streams, name) for name in ("out", "err")]
        variables = dict(os.environ if environment is None else environment)
        place = os.fspath(folder or os.getcwd())
        process = _server().Process(target=_child, args=(line, variables, place, paths))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(line, timeout)
        out, error = (Path(path).read_text(encoding="utf-8") for path in paths)
    return subprocess.CompletedProcess(line, process.exitcode, out, error)


def compiling(code: str) -> str:
    """What ``code`` prints in a process where Triton compiles, and interprets nothing."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = python("-c", code, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def _server() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(BEFOREHAND)
    return context


def _child(line: list[str], environment: dict[str, str], folder: str, paths: list[str]) -> None:
    for stream, path in zip((sys.stdout, sys.stderr), paths, strict=True):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    kind, what, *rest = line
    sys.argv = [kind, *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
