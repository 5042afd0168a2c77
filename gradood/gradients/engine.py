"""One forward pass, one backward pass a label, and a norm for every parameter and sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import Parameter

from gradood.gradients.known import known
from gradood.gradients.plan import Forward, Plan
from gradood.gradients.recorder import Observer, Recorder
from gradood.ops.dispatch import settled


def run(
    plan: Plan,
    forward: Forward,
    x: Tensor,
    parameters: Mapping[str, Parameter],
    logit_gradients: Callable[[Tensor], Sequence[Tensor]],
    observer: Observer | None = None,
    activations: bool = False,
) -> tuple[Tensor, Recorder, list[dict[str, Tensor]]]:
    """Score one micro-batch: logits, what the pass recorded, norms by parameter for every label.

    Raises:
        PlanError: The model did something else than in the probe.
    """
    recorder = Recorder(plan, parameters, x.shape[0], x.device, observer)
    recorder.keeps_activations = activations
    if observer is None:
        recorder.known = known(plan, parameters, x.shape[0], x.device, activations)
    with settled():
        with recorder:
            logits = forward(x)
        recorder.finish()
        gradients = logit_gradients(logits)
        with full_precision(x.device.type):
            norms = [
                recorder.backward(logits, g, last=i == len(gradients) - 1)
                for i, g in enumerate(gradients)
            ]
    return logits.detach(), recorder, norms


def full_precision(device: str) -> AbstractContextManager[object]:
    """No autocast: norms accumulate in float32."""
    autocast = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if autocast else nullcontext()
