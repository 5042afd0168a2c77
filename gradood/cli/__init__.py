"""The ``gradood`` command: one file a sub-command.

Commands import PyTorch, and what needs it, when they run: ``gradood --help`` does not wait for it.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from gradood.cli.bench import bench
from gradood.cli.certify import certify
from gradood.cli.demo import demo
from gradood.cli.evaluate import evaluate
from gradood.cli.explain import explain
from gradood.cli.fit import fit
from gradood.cli.info import info
from gradood.cli.score import score
from gradood.cli.selftest import selftest
from gradood.cli.watch import watch
from gradood.errors import GradoodError, first_line

__all__ = ["app", "main"]


class _OneSentenceErrors(TyperGroup):
    """Every error as one red sentence and exit status 2, without a traceback."""

    def invoke(self, ctx: Any) -> Any:  # a click.Context, which some typers carry inside
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # while an error of it can still be said
            return result
        except (Exception, SystemExit) as error:
            if _is_usage(error) or ctx.params.get("debug"):
                raise
            if isinstance(error, OSError):
                _give_up_stdout()
            console = Console(stderr=True)
            console.print(_said(error), style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error


def _is_usage(error: BaseException) -> bool:
    """Whether it is an error or exit of typer, which prints its own message."""
    return type(error).__module__.split(".")[0] in ("click", "typer")


def _said(error: BaseException) -> str:
    if isinstance(error, GradoodError):
        return str(error)
    reason = first_line(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'standard output'}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "the memory is not enough; take a smaller --batch-size"
    if isinstance(error, SystemExit):
        return f"a module that was imported ended the program ({reason or 0})"
    return f"{type(error).__name__}: {reason or 'no reason given'} (gradood --debug … shows where)"


def _give_up_stdout() -> None:
    """Discard output that cannot be written, so that it is not retried at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(cls=_OneSentenceErrors, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Is this input anomalous for my network?"""


app.command()(bench)
app.command()(certify)
app.command()(demo)
app.command()(evaluate)
app.command()(explain)
app.command()(fit)
app.command()(info)
app.command()(score)
app.command()(selftest)
app.command()(watch)


def main() -> None:
    """Run the command line; the entry point of ``gradood`` and ``python -m gradood``."""
    # Before PyTorch is imported: threads that spin while waiting slow a busy machine down.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()
