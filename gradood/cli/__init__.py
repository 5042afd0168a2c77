"""The ``gradood`` command: one file a sub-command."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from gradood.cli.bench import bench
from gradood.cli.certify import certify
from gradood.cli.demo import demo
from gradood.cli.evaluate import evaluate
from gradood.cli.fit import fit
from gradood.cli.info import info
from gradood.cli.score import score
from gradood.cli.selftest import selftest
from gradood.errors import GradoodError

__all__ = ["app", "main"]


class _OneSentenceErrors(TyperGroup):
    """Errors of gradood's own as one red sentence and exit status 2, without a traceback."""

    def invoke(self, ctx: Any) -> Any:  # a click.Context, which some typers carry inside
        try:
            return super().invoke(ctx)
        except GradoodError as error:
            if ctx.params.get("debug"):
                raise
            Console(stderr=True).print(f"{error}", style="red", markup=False, highlight=False)
            raise typer.Exit(2) from error


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
app.command()(fit)
app.command()(info)
app.command()(score)
app.command()(selftest)


def main() -> None:
    """Run the command line; the entry point of ``gradood`` and ``python -m gradood``."""
    # Before PyTorch is imported: threads that wait spinning slow a busy machine down many times.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()
