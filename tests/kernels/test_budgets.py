"""What a pass would cost on an H100, computed from the launch table; no change may cost more.

The calls of three models at 224² are recorded, see ``model_launches.record``; nothing is measured.
"""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import cost
from gradood.kernels.launch import Settings

CALLS = json.loads(Path(__file__).with_name("model_calls.json").read_text())
#: Samples, most milliseconds, most launches.
BUDGETS = {
    "resnet18": (256, 2.6, 29),  # 4.1 and 88 with one tap a program, and a sum a layer
    "resnet50": (256, 7.7, 63),  # 10.7 and 221
    "vit_b_16": (128, 3.8, 51),  # 4.7 and 174; 10.0 with tiles of 64 tokens, each side loaded
}


@pytest.mark.parametrize("name", BUDGETS)
def test_computed_cost_stays_within_its_budget(name):
    samples, most, launches = BUDGETS[name]
    found, launched = cost.milliseconds(CALLS[name], samples)
    assert 0.9 * most < found <= most and launched <= launches


def test_channels_as_planes_cost_little_more():
    last, _ = cost.milliseconds(CALLS["resnet50"], 256)
    planes, _ = cost.milliseconds(CALLS["resnet50"], 256, planes=True)
    assert 1.05 * last < planes < 1.15 * last


def test_wider_tiles_and_one_load_on_the_diagonal_are_what_vit_gains(monkeypatch):
    table = cost._settings

    def narrow(target, family, number, bucket):
        narrower = Settings(64, 0, 64, 4, 3)
        return narrower if family == "gram" else table(target, family, number, bucket)

    now, _ = cost.milliseconds(CALLS["vit_b_16"], 128)
    monkeypatch.setattr(cost, "_settings", narrow)
    before, _ = cost.milliseconds(CALLS["vit_b_16"], 128)
    assert 8.9 < before < 9.1 and before > 2 * now
