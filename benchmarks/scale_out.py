"""What each way to scale out costs an image, above a bare loop over the same batches.

    python benchmarks/scale_out.py [--images 2000]

Computing time of all processes that take part, which other work on the machine changes little;
waiting is not counted. Writes ``results/scale_out.csv`` and ``scale_out.md``.
"""

from __future__ import annotations

import csv
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from PIL import Image

import gradood
from gradood.data import embedded_images
from gradood.data.files import IterableSource
from gradood.data.files.pictures import picture_from
from gradood.scoring.models import load_model
from gradood.scoring.ray import RayScorer
from gradood.scoring.scores import RowScorer
from gradood.scoring.stream import Stream

RESULTS = Path(__file__).parent / "results"
BATCH = 256


def encoded(count: int) -> list[bytes]:
    """Real pictures as PNG, over and over."""
    names = ("fashion-mnist", "mnist", "photos")
    pictures = torch.cat([embedded_images(name) for name in names])[:, 0]
    found = []
    for i in range(count):
        buffer = io.BytesIO()
        pixels = (pictures[i % len(pictures)] * 255).round().byte().numpy()
        Image.fromarray(pixels).save(buffer, "png")
        found.append(buffer.getvalue())
    return found


def computing(call: Callable[[], object]) -> float:
    """Seconds that this process and its children compute during the call."""
    begin = _seconds()
    call()
    return _seconds() - begin


def _seconds() -> float:
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


class Nothing:
    """What Ray does around a class that does nothing."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def main(
    images: Annotated[int, typer.Option(min=1)] = 2000,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Measure and report."""
    loaded = load_model(device="cpu")
    detector = gradood.GradientKNN(loaded.model, progress=False)
    normal = embedded_images("fashion-mnist-train")
    detector.fit(normal[:800]).calibrate(normal[800:])
    contents = encoded(images)
    batches = [contents[i : i + BATCH] for i in range(0, images, BATCH)]
    scorer = RowScorer(detector)
    with tempfile.TemporaryDirectory() as folder:
        detector.save(f"{folder}/detector")
        of_ray = RayScorer(f"{folder}/detector", model={"device": "cpu"})

    def bare() -> None:
        for batch in batches:
            pictures = [np.asarray(Image.open(io.BytesIO(c)), np.float32)[None] for c in batch]
            detector.score(torch.from_numpy(np.stack(pictures) / 255)).tolist()

    def stream() -> None:
        source = IterableSource(contents, read=lambda c: picture_from(io.BytesIO(c)))
        for part in Stream(scorer, loaded, batch_size=BATCH).run(source):
            scorer.lines(part)

    def columns() -> None:
        for batch in batches:
            of_ray({"image": np.array(batch, object)})

    ways = {"bare loop": bare, "gradood score, torchrun": stream, "RayScorer, Spark": columns}
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(computing(way) / images * 1e6)
    bare_time = median(times["bare loop"])
    extra = {
        name: median(x - b for x, b in zip(found, times["bare loop"], strict=True))
        for name, found in times.items()
        if name != "bare loop"
    }
    extra["Ray Data itself"] = ray_itself(contents)
    write(images, rounds, bare_time, extra)


def ray_itself(contents: list[bytes]) -> float:
    """Microseconds an image of a data set that passes through one actor and comes back."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 << 20)
    data = ray.data.from_items([{"image": content} for content in contents]).materialize()

    def through() -> None:
        pool = ray.data.ActorPoolStrategy(size=1)
        passed = data.map_batches(Nothing, batch_size=BATCH, compute=pool)
        assert sum(len(b["image"]) for b in passed.iter_batches(batch_size=BATCH)) == len(contents)

    through()
    found = computing(through) / len(contents) * 1e6
    ray.shutdown()
    return found


def write(images: int, rounds: int, bare: float, extra: dict[str, float]) -> None:
    with open(RESULTS / "scale_out.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["way", "microseconds_an_image", "images", "rounds"])
        writer.writerow(["bare loop", round(bare, 1), images, rounds])
        writer.writerows([name, round(x, 1), images, rounds] for name, x in extra.items())
    lines = [
        "# Scaling out: computing time an image",
        "",
        f"{images:,} PNG pictures of 28 x 28, GradientKNN on the embedded ResNet-8, batches of "
        f"{BATCH}, one thread, medians of {rounds} interleaved rounds (Ray Data itself: one), on a "
        f"shared machine. A bare loop takes {bare:,.0f} µs an image.",
        "",
        "| way | µs more an image | of the bare loop | core-hours more for 10⁹ images (computed) |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {x:,.0f} | {x / bare:.1%} | {x * 1e9 / 1e6 / 3600:,.0f} |"
        for name, x in extra.items()
    ]
    lines += [
        "",
        f"10⁹ such images take {bare * 1e9 / 1e6 / 3600:,.0f} core-hours in the bare loop "
        "(computed). What is added does not grow with the model: of 50 ms an image it would be at "
        f"most {max(extra.values()) / 50_000:.1%}. Ray's share contains the start of an actor, a "
        "few seconds once, which these few images do not spread.",
        "",
        "`python benchmarks/scale_out.py`",
        "",
    ]
    (RESULTS / "scale_out.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
