"""What each score costs an image, in processor time, beside an ordinary training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.experiments.protocols import depths
from gradood.detectors import Detector, GradientDetector, GradientKNN, GradNorm
from gradood.detectors.presets import PRESETS
from gradood.gradients import gradient_grams, gradient_norms


class Cost(NamedTuple):
    """Median over rounds in which all take turns."""

    what: str
    milliseconds: float
    of_forward: float
    of_step: float


def costs(model: nn.Module, fit: Tensor, images: Tensor, rounds: int) -> list[Cost]:
    """Processor time an image of everything, measured in one run."""

    jobs = detector_jobs(model, fit, images)
    names = [name for name, _ in model.named_parameters()]
    for name, start in depths(model).items():
        jobs[f"norms, {name}"] = partial(gradient_norms, model, images, parameters=names[start:])
    jobs["Grams of all logits"] = partial(gradient_grams, model, images)
    return measured(jobs, len(images), rounds)


def detector_jobs(model: nn.Module, fit: Tensor, images: Tensor) -> dict[str, Callable[[], object]]:
    """Passes of the model, and the scores of fitted detectors, by name."""

    @torch.no_grad()
    def forward() -> None:
        model(images)

    def step() -> None:
        torch.autograd.backward(model(images).logsumexp(1).sum())
        model.zero_grad(set_to_none=True)

    detectors: dict[str, Detector] = {
        f'GradientDetector "{preset}"': GradientDetector(model, preset=preset).fit(fit)
        for preset in PRESETS
    }
    detectors |= {"GradientKNN": GradientKNN(model).fit(fit), "GradNorm": GradNorm(model)}
    scores = {name: partial(detector.score, images) for name, detector in detectors.items()}
    return {"forward": forward, "forward + backward": step, **scores}


def measured(jobs: Mapping[str, Callable[[], object]], images: int, rounds: int) -> list[Cost]:
    """Processor time an image of each; they take turns."""
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            begin = time.process_time()
            job()
            if turn:
                spent[name].append(time.process_time() - begin)
    middle = {name: 1000 * median(times) / images for name, times in spent.items()}
    forwards, steps = middle["forward"], middle["forward + backward"]
    return [Cost(name, t, t / forwards, t / steps) for name, t in middle.items()]
