"""Options that several commands share: a dataclass a group, an option a field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin, get_type_hints

import typer

from gradood.errors import InputError

if TYPE_CHECKING:
    from gradood.data.files import Source
    from gradood.scoring.models import LoadedModel
    from gradood.scoring.stream import Stream


class OnError(str, Enum):
    """What to do about an input that cannot be read or scored."""

    FAIL = "fail"
    SKIP = "skip"


class Dtype(str, Enum):
    """Precision of parameters and inputs."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Units(str, Enum):
    """What noise, radii and budgets are measured in."""

    PIXELS = "pixels"
    INPUT = "input"

    @property
    def words(self) -> str:
        """For a reader."""
        return "pixels from 0 to 1" if self is Units.PIXELS else "units of the model's input"


UnitsOption = Annotated[
    Units,
    typer.Option(
        help="pixels: noise and attacks come before the model's standardisation. input: after it, "
        "so that sigma, radii and budgets are in units of the model's own input."
    ),
]
Inputs = Annotated[
    list[Path],
    typer.Argument(
        help="Folders of pictures, pictures, .npy, .npz, .parquet or (WebDataset) .tar files.",
        show_default=False,
    ),
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        help="Which array, column or tar member is the input. For a model of several inputs "
        "repeat it, as NAME or ARGUMENT=NAME.",
    ),
]
Report = Annotated[
    Path | None, typer.Option(help="Folder for a report: index.html and its figures as PNG.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Log JSON lines to stdout, without a bar.")]


@dataclass(frozen=True)
class ModelOptions:
    """What ``load_model`` is called with."""

    model: Annotated[
        str | None,
        typer.Option(
            help="package.module:function, timm:NAME, transformers:FOLDER or a file of "
            "torch.export.save or torch.jit.save; the embedded classifier if none.",
        ),
    ] = None
    weights: Annotated[
        Path | None, typer.Option(help="Safetensors, or a state dict; no pickle can run code.")
    ] = None
    classes: Annotated[int | None, typer.Option(min=1, help="Of the weights' last layer.")] = None
    preprocess: Annotated[
        str | None,
        typer.Option(help="JSON, or its file: input_size, crop_pct, interpolation, mean, std."),
    ] = None
    trust: Annotated[bool, typer.Option("--trust", help="A program file's author is trusted.")] = (
        False
    )
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1 …; auto for a GPU if there is one.")
    ] = "auto"
    dtype: Dtype = Dtype.FLOAT32
    compile: bool = False

    def load(self) -> LoadedModel:
        """The model."""
        from gradood.scoring.models import load_model

        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return load_model(given.pop("model"), **given | {"dtype": self.dtype.value})


@dataclass(frozen=True)
class ScoringModelOptions(ModelOptions):
    """The same, in a precision of its own."""

    dtype: Annotated[Dtype, typer.Option(help="Of parameters and inputs.")] = Dtype.FLOAT32


@dataclass(frozen=True)
class CompiledModelOptions(ScoringModelOptions):
    """The same, which may be compiled."""

    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile, for scores of logits.")
    ] = False


@dataclass(frozen=True)
class StreamOptions:
    """What a ``Stream`` is made with."""

    column: Column = None
    batch_size: Annotated[str, typer.Option(help="Inputs a batch, or auto.")] = "auto"
    on_error: Annotated[
        OnError, typer.Option(help="An input that cannot be read or scored stops the run, or not.")
    ] = OnError.FAIL
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read; one a core.")] = (
        None
    )

    def source(self, paths: Sequence[Path], rank: int = 0, world: int = 1) -> Source:
        """The inputs in ``paths``."""
        from gradood.data.files import open_source

        return open_source(paths, column=self.column, rank=rank, world=world)

    def stream(self, compute: Any, loaded: LoadedModel, limit: int = 1 << 31) -> Stream:
        """A stream that runs ``compute``."""
        from gradood.scoring.stream import Stream

        size: Any = self.batch_size
        if size != "auto":
            if not size.isdecimal():
                raise InputError(f"--batch-size {size}: expected a number, or auto")
            size = int(size)
        on_error: Any = self.on_error.value
        return Stream(
            compute, loaded, batch_size=size, on_error=on_error, workers=self.workers, limit=limit
        )


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """``command``, whose arguments that are dataclasses are given as one option a field.

    Fields whose types are not ``Annotated`` are no options.
    """
    groups: dict[str, tuple[Any, list[str]]] = {}
    parameters = []
    for given in signature(command, eval_str=True).parameters.values():
        group = given.annotation
        if not is_dataclass(group):
            parameters.append(given.replace(kind=Parameter.KEYWORD_ONLY))
            continue
        types = get_type_hints(group, include_extras=True)
        own = [
            Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=types[f.name])
            for f in fields(group)
            if get_origin(types[f.name]) is Annotated
        ]
        groups[given.name] = group, [parameter.name for parameter in own]
        parameters += own

    @wraps(command)
    def call(**given: Any) -> None:
        made = {
            name: group(**{key: given.pop(key) for key in keys})
            for name, (group, keys) in groups.items()
        }
        command(**given, **made)

    call.__signature__ = signature(command).replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call
