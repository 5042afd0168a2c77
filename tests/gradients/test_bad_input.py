"""Arguments and models that are refused, each with its error."""

import pytest
import torch
from torch import nn

import gradood
from gradood.errors import InputError, ModelError
from tests.gradients.oracle import (
    HiddenSlope,
)

BAD = {
    "batch statistics": (lambda m, x: (m.train(), x), {}, ModelError, r"model\.eval\(\)"),
    "no statistics": (
        lambda m, x: (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), m).eval(), x),
        {},
        ModelError,
        "statistics of the batch",
    ),
    "logits not [N, C]": (lambda m, x: (m[:3], x), {}, ModelError, r"not floating-.*\[N, C\]"),
    "a tuple": (
        lambda m, x: (nn.Sequential(nn.Flatten(), nn.LSTM(147, 3)), x), {}, ModelError, "tuple"
    ),  # fmt: skip
    "integers": (lambda m, x: (m, (x * 50).to(torch.uint8)), {}, InputError, r"x\.float\(\) / 255"),
    "not a tensor": (lambda m, x: (m, x.tolist()), {}, InputError, "must be a Tensor"),
    "no batch": (lambda m, x: (m, x[0, 0, 0, 0]), {}, InputError, "dimension 0"),
    "not a module": (lambda m, x: (m.forward, x), {}, InputError, "torch.nn.Module"),
    "label": (lambda m, x: (m, x), {"label": "hot"}, InputError, "not known; use"),
    "label k": (lambda m, x: (m, x), {"label": "k_hot:9"}, InputError, "0 to 5"),
    "label number": (lambda m, x: (m, x), {"label": "one_hot:x"}, InputError, "whole number"),
    "label size": (lambda m, x: (m, x), {"label": torch.ones(3)}, InputError, r"\[5\] or \[6, 5\]"),
    "label range": (lambda m, x: (m, x), {"label": torch.ones(5) * 2}, InputError, "0 and 1"),
    "label list": (lambda m, x: (m, x), {"label": []}, InputError, "not empty"),
    "loss": (lambda m, x: (m, x), {"loss": "mse"}, InputError, "bce_softmax"),
    "method": (lambda m, x: (m, x), {"method": "fast"}, InputError, "rules"),
    "micro batch": (lambda m, x: (m, x), {"micro_batch": 0}, InputError, "samples a pass"),
    "policy": (lambda m, x: (m, x), {"nan_policy": "ignore"}, InputError, "flag"),
    "pattern": (lambda m, x: (m, x), {"parameters": "head.*"}, InputError, "matches none"),
    "max norm": (
        lambda m, x: (
            nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.Flatten()),
            x[:, 0, 0].long() * 0,
        ),
        {},
        ModelError,
        "max_norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises_its_error(model, x, name):
    change, arguments, error, message = BAD[name]
    model, x = change(model, x)
    with pytest.raises(error, match=message):
        gradood.gradient_norms(model, x, **arguments)


def test_samples_that_influence_one_another_are_an_error(x):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(147, 4)

        def forward(self, x):
            x = x.flatten(1)
            return self.lin(x - x.mean(0))

    with pytest.raises(ModelError, match="depend on the other samples"):
        gradood.gradient_norms(Centred().eval(), x)


def test_rules_only_names_what_is_not_covered():
    model = nn.Sequential(nn.Linear(4, 4), HiddenSlope(), nn.Linear(4, 2))
    with pytest.raises(ModelError, match="1.weight: used where no operator can be seen"):
        gradood.gradient_norms(model, torch.randn(3, 4), method="rules")
