"""``gradood score``: how anomalous is every input, in a file."""

from __future__ import annotations

import hashlib
import os
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradood.cli import options
from gradood.cli.report import check_folder, describe_detector, made_with, say, write
from gradood.errors import InputError

if TYPE_CHECKING:
    from gradood.data.files import Source
    from gradood.progress import Throughput
    from gradood.scoring.output import ScoreFile, ScorePipe
    from gradood.scoring.scores import RowScorer
    from gradood.scoring.stream import Stream

#: Exit status of a run that finished, but skipped inputs.
SKIPPED = 3
#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130

_DETECTOR = typer.Option(help="A file that gradood fit wrote, or max-softmax, or energy.")


@options.grouped
def score(
    inputs: options.Inputs,
    detector: Annotated[str, _DETECTOR] = "max-softmax",
    out: Annotated[
        Path, typer.Option(help="Parquet if it ends so, or JSON lines; a file or a pipe.")
    ] = Path("scores.jsonl"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a killed run stopped.")
    ] = False,
    layers: Annotated[int, typer.Option(min=0, help="Name so many layers that reacted.")] = 3,
    p_values: Annotated[
        bool, typer.Option("--p-values", help="Conformal p-values, of a calibrated detector.")
    ] = False,
    report: options.Report = None,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Replay the passes of equal batches on a GPU.")
    ] = False,
    *,
    models: options.CompiledModelOptions,
    streams: options.StreamOptions,
    as_json: options.AsJson = False,
) -> None:
    """Score inputs: id, score, decision, the layers that reacted, and what was wrong.

    Under torchrun every process takes its share of the inputs and writes a file of its own.

    --report shows the distribution and the most anomalous inputs, which are read again for it.

    Exit status: 0; 2 after an error; 3 if inputs were skipped; 130 after Ctrl-C. A finished file is
    left alone by --resume, so that a run can be repeated until it succeeds, but reported on again;
    an error if inputs are there by now that it lacks.
    """
    from gradood.gradients import cuda_graphs
    from gradood.scoring.fitting import ready_detector
    from gradood.scoring.output import ScorePipe, open_scores
    from gradood.scoring.rows import COLUMNS, read_rows
    from gradood.scoring.scores import RowScorer

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        out = out.with_name(f"{out.stem}-{rank:05}-of-{world:05}{out.suffix}")
        report = report and report.with_name(f"{report.name}-{rank:05}-of-{world:05}")
        models = replace(models, device=_own_gpu(models.device))
    check_folder(report)
    column = streams.column or []
    settings = {
        "column": column[0] if len(column) == 1 else column or None,
        "detector": _digest(detector),
        "model": models.model,
        "weights": _digest(str(models.weights)) if models.weights else None,
        "classes": models.classes,
        "preprocess": models.preprocess,
        "layers": layers,
        **({"p_values": True} if p_values else {}),
        "batch_size": streams.batch_size,
        "dtype": models.dtype.value,
        "world": world,
    }
    source = streams.source(inputs, rank, world)
    with closing(open_scores(out, settings, [str(path) for path in inputs], resume)) as file:
        if isinstance(file, ScorePipe) and (report is not None or (as_json and file.is_stdout)):
            raise InputError(
                f"{out} is no file: --report cannot read it again, --json needs stdout"
            )
        throughput = None
        if file.complete:
            file.check_finished(source)
        else:
            loaded = models.load()
            if cuda_graph and loaded.device.type != "cuda":
                raise InputError(f"--cuda-graph needs a GPU; the model is on {loaded.device}")
            found = ready_detector(detector, loaded, models.compile)
            scorer = RowScorer(found, layers, p_values)
            stream = streams.stream(scorer, loaded, file.state["limit"])
            with cuda_graphs() if cuda_graph else nullcontext():
                throughput = _run(file, source, scorer, stream, as_json)
    if not as_json:
        begin = "" if throughput else "Nothing to do, the file is complete: "
        counts = f"{file.state['scored']:,} inputs scored, {file.state['skipped']:,} skipped."
        say(f"{begin}{counts}\nScores: {file.path.absolute()}", err=file.is_stdout)
    if report is not None:
        from gradood.evaluation.reports.scores import score_page

        known, threshold = describe_detector(detector)
        page = score_page(
            lambda: read_rows(out, (*COLUMNS, "p_value") if p_values else COLUMNS),
            source,
            title=f"Scores of {', '.join(path.name or str(path) for path in inputs)}",
            throughput=throughput,
            threshold=threshold,
            made=made_with({"Inputs": inputs, "Scores": [out]}, known, models),
        )
        write(page, report, quiet=as_json)
    if file.state["skipped"]:
        raise typer.Exit(SKIPPED)


def _run(
    file: ScoreFile | ScorePipe, source: Source, scorer: RowScorer, stream: Stream, as_json: bool
) -> Throughput:
    from gradood.progress import Reporter

    done = file.state["scored"] + file.state["skipped"]
    rest, position = file.rest(source)
    with Reporter("scoring", source.count(), done, as_json) as reporter:
        try:
            for batch in stream.run(rest, position):
                skipped = sum(error is not None for error in batch.errors)
                file.append(scorer.lines(batch), batch.after, batch.limit, skipped)
                reporter.advance(len(batch.ids))
        except KeyboardInterrupt as interrupt:
            reporter.message("warning", "interrupted; --resume goes on from here")
            raise typer.Exit(INTERRUPTED) from interrupt
        # The share of one process may be empty; a whole run without any score is an error.
        if not file.state["scored"] and (file.state["skipped"] or not source.is_share):
            raise InputError(f"no input could be scored; {file.state['skipped']} were skipped")
        file.finish()
        counts = {name: file.state[name] for name in ("scored", "skipped")}
        throughput = reporter.throughput
        reporter.done(**counts, out=str(file.path))
        return throughput


def _digest(name: str) -> str:
    """A file's content in short, so that a run is not resumed with another one; or the name."""
    path = Path(name)
    if not path.is_file():
        return name
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return f"{path.name} {digest.hexdigest()[:16]}"


def _own_gpu(device: str) -> str:
    """The GPU of this process among those of its machine."""
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return device
