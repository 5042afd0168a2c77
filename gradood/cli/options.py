"""Options that several commands share, and what they make together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
Model = Annotated[
    str | None,
    typer.Option(
        help="package.module:function, timm:NAME, transformers:FOLDER or a file of "
        "torch.export.save or torch.jit.save; the embedded classifier if none.",
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="Safetensors, or a state dict; no pickle can run code.")
]
Classes = Annotated[int | None, typer.Option(min=1, help="Of the weights' last layer.")]
Preprocess = Annotated[
    str | None,
    typer.Option(help="JSON, or its file: input_size, crop_pct, interpolation, mean, std."),
]
Trust = Annotated[bool, typer.Option("--trust", help="A program file's author is trusted.")]
Column = Annotated[
    list[str] | None,
    typer.Option(
        help="Which array, column or tar member is the input. For a model of several inputs "
        "repeat it, as NAME or ARGUMENT=NAME.",
    ),
]
BatchSize = Annotated[str, typer.Option(help="Inputs a batch, or auto.")]
OnErrorOption = Annotated[
    OnError, typer.Option(help="An input that cannot be read or scored stops the run, or not.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads that read; one a core.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto for a GPU if there is one.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Of parameters and inputs.")]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile, for scores of logits.")]
Report = Annotated[
    Path | None, typer.Option(help="Folder for a report: index.html and its figures as PNG.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Log JSON lines to stdout, without a bar.")]


@dataclass(frozen=True)
class ModelOptions:
    """What ``load_model`` is called with."""

    model: str | None
    weights: Path | None
    classes: int | None
    preprocess: str | None
    trust: bool
    device: str = "auto"
    dtype: Dtype = Dtype.FLOAT32
    compile: bool = False

    def load(self) -> LoadedModel:
        """The model."""
        from gradood.scoring.models import load_model

        return load_model(
            self.model,
            weights=self.weights,
            classes=self.classes,
            preprocess=self.preprocess,
            trust=self.trust,
            device=self.device,
            dtype=self.dtype.value,
            compile=self.compile,
        )


@dataclass(frozen=True)
class StreamOptions:
    """What a ``Stream`` is made with."""

    column: list[str] | None
    batch_size: str
    on_error: OnError
    workers: int | None

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
        return Stream(
            compute,
            loaded,
            batch_size=size,
            on_error=self.on_error.value,
            workers=self.workers,
            limit=limit,
        )
