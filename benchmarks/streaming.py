"""What ``gradood score`` costs above the loop that one would write by hand, and what it keeps.

    python benchmarks/streaming.py [--images 10000] [--rounds 3]

Both read the same PNG files and score them with the same detector in batches of the same size, in
processes of their own, in turn. Rows are appended to ``results/streaming.csv``; ``streaming.md`` is
written anew. Seconds of computing, of all threads, are given beside those of the clock, which other
work on the machine makes longer.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

import gradood
from gradood.data import embedded_classifier, embedded_images

RESULTS = Path(__file__).parent / "results"
BATCH = 256


def by_hand(folder: Path, detector_file: Path) -> dict[str, Any]:
    """The bare loop: files in, scores out, nothing else."""
    detector = gradood.load(detector_file, embedded_classifier())
    begin, begin_cpu = time.monotonic(), time.process_time()
    scores: dict[str, float] = {}
    paths = sorted(folder.iterdir())
    for start in range(0, len(paths), BATCH):
        chosen = paths[start : start + BATCH]
        pixels = [np.asarray(Image.open(p).convert("L"), np.float32)[None] / 255 for p in chosen]
        found = detector.score(torch.from_numpy(np.stack(pixels))).tolist()
        scores.update(zip((p.name for p in chosen), found, strict=True))
    return {
        "seconds": time.monotonic() - begin,
        "cpu_seconds": time.process_time() - begin_cpu,
        "scores": scores,
    }


def by_command(folder: Path, detector_file: Path, out: Path) -> dict[str, Any]:
    """``gradood score``, and what it logs."""
    command = [sys.executable, "-m", "gradood", "score", str(folder), "--json", "--out", str(out)]
    options = ["--detector", str(detector_file), "--batch-size", str(BATCH)]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    # After a quarter everything that is allocated once has been.
    total = events[0]["total"]
    warm = [e for e in events if e["event"] == "progress" and 4 * e["done"] >= total]
    memory = [event["memory_mb"] for event in (*warm, events[-1])]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {
        "seconds": events[-1]["seconds"],
        "cpu_seconds": events[-1]["cpu_seconds"],
        "scores": {row["id"]: row["score"] for row in rows},
        "memory_first": memory[0],
        "memory_last": memory[-1],
    }


def write_pictures(folder: Path, count: int) -> None:
    """Real pictures of four embedded sets, over and over, each shifted differently."""
    names = ("fashion-mnist", "fashion-mnist-train", "mnist", "photos")
    pictures = torch.cat([embedded_images(name) for name in names])
    folder.mkdir()
    for i in range(count):
        pixels = pictures[i % len(pictures), 0].roll(i // len(pictures), 1)
        Image.fromarray((pixels * 255).round().byte().numpy()).save(folder / f"{i:06}.png")


def main(
    images: Annotated[int, typer.Option(min=1)] = 10_000,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    hand: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure, append and report."""
    if hand is not None:  # one turn of the bare loop, in a process of its own
        print(json.dumps(by_hand(hand / "pictures", hand / "detector")))
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_pictures(root / "pictures", images)
        write_pictures(root / "few", 1000)
        fit = [sys.executable, "-m", "gradood", "fit", str(root / "few"), "--out"]
        subprocess.run([*fit, str(root / "detector")], check=True, capture_output=True)
        rows = [turn(root, images, number) for number in range(rounds)]
    append(rows, RESULTS / "streaming.csv")
    (RESULTS / "streaming.md").write_text(report(rows))
    print(report(rows))


def turn(root: Path, images: int, number: int) -> dict[str, Any]:
    """Both ways once; which goes first alternates."""
    command = [sys.executable, __file__, "--hand", str(root)]
    found: dict[str, dict[str, Any]] = {}
    for way in ("hand", "command") if number % 2 else ("command", "hand"):
        if way == "hand":
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way] = json.loads(done.stdout)
        else:
            found[way] = by_command(root / "pictures", root / "detector", root / "scores.jsonl")
    hand, score = found["hand"], found["command"]
    assert hand["scores"].keys() == score["scores"].keys() and len(hand["scores"]) == images
    largest = max(abs(hand["scores"][n] - score["scores"][n]) for n in hand["scores"])
    return {
        "images": images,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "hand_seconds": round(hand["seconds"], 3),
        "score_seconds": round(score["seconds"], 3),
        "hand_cpu_seconds": round(hand["cpu_seconds"], 3),
        "score_cpu_seconds": round(score["cpu_seconds"], 3),
        "memory_at_a_quarter_mb": score["memory_first"],
        "memory_at_the_end_mb": score["memory_last"],
        "largest_difference": largest,
    }


def append(rows: list[dict[str, Any]], path: Path) -> None:
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if new:
            writer.writeheader()
        writer.writerows(rows)


def report(rows: list[dict[str, Any]]) -> str:
    cpu = [row["score_cpu_seconds"] / row["hand_cpu_seconds"] - 1 for row in rows]
    wall = [row["score_seconds"] / row["hand_seconds"] - 1 for row in rows]
    growth = [row["memory_at_the_end_mb"] - row["memory_at_a_quarter_mb"] for row in rows]
    return "\n".join(
        (
            "# `gradood score` against the bare loop",
            "",
            f"{rows[0]['images']:,} PNG files of 28 x 28 pixels, GradientKNN on the embedded "
            f"ResNet-8, batches of {BATCH}, {rows[0]['threads']} thread, {len(rows)} rounds in "
            f"turn; load average {median(row['load'] for row in rows):.0f} from other work.",
            "",
            "| | median | all rounds |",
            "| --- | ---: | --- |",
            f"| more time computing | {median(cpu):+.1%} | {', '.join(f'{x:+.1%}' for x in cpu)} |",
            f"| more time by the clock | {median(wall):+.1%} | "
            f"{', '.join(f'{x:+.1%}' for x in wall)} |",
            f"| growth of memory after a quarter, MB | {median(growth):.0f} | "
            f"{', '.join(f'{x:.0f}' for x in growth)} |",
            f"| largest difference of a score | "
            f"{max(row['largest_difference'] for row in rows):.1g} | |",
            "",
            "`python benchmarks/streaming.py`; the command also names the three layers that "
            "reacted, decides, and writes a file that a kill at any moment leaves resumable.",
            "",
        )
    )


if __name__ == "__main__":
    typer.run(main)
