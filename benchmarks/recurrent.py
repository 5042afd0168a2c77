"""An LSTM classifier: gradient norms against ordinary passes, in one interleaved run.

``python -m benchmarks.recurrent`` prints medians in milliseconds, and ratios. Compared are

* ``norms``: ``gradient_norms`` of every parameter;
* ``cells``: an ordinary forward and backward pass that runs the same layers as cells, step by step;
* ``fused``: an ordinary forward and backward pass through PyTorch's own layer.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradood


class Classifier(nn.Module):
    """Two recurrent layers, and a linear one on the last output."""

    def __init__(self, units: int, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.LSTM(units, units, num_layers=2, batch_first=True)
        self.head = nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``[N, T, units]``."""
        return self.head(self.layers(x)[0][:, -1])

    def by_cells(self, x: Tensor) -> Tensor:
        """The same, one step after the other; each layer's input product is one."""
        steps = x.transpose(0, 1)
        for layer in range(2):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            w_ih, w_hh, b_ih, b_hh = (getattr(self.layers, f"{name}_l{layer}") for name in names)
            products = functional.linear(steps, w_ih, b_ih)
            h = c = x.new_zeros(len(x), w_hh.shape[1])
            outputs = []
            for product in products:
                i, f, g, o = (product + functional.linear(h, w_hh, b_hh)).chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                outputs.append(h)
            steps = torch.stack(outputs)
        return self.head(steps[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = Classifier(options.units).eval()
    x = torch.randn(options.samples, options.steps, options.units)
    label = torch.ones(options.samples, 10)

    def ordinary(logits: Tensor) -> None:
        loss = functional.binary_cross_entropy_with_logits(logits, label, reduction="sum")
        torch.autograd.grad(loss, list(model.parameters()))

    assert torch.allclose(model(x), model.by_cells(x), atol=1e-5)
    methods = {
        "norms": lambda: gradood.gradient_norms(model, x),
        "cells": lambda: ordinary(model.by_cells(x)),
        "fused": lambda: ordinary(model(x)),
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(options.rounds + 2):
        for name, run in methods.items():
            start = time.perf_counter()
            run()
            if turn >= 2:  # the first turns probe the model and warm the machine
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{torch.__version__}, {options.threads} threads, {options}")
    for name, value in median.items():
        spread = (max(times[name]) - min(times[name])) / value
        print(f"{name:6} {1e3 * value:8.1f} ms   spread {spread:.0%}")
    print(f"norms / cells {median['norms'] / median['cells']:.2f}")
    print(f"norms / fused {median['norms'] / median['fused']:.2f}")


if __name__ == "__main__":
    main()
