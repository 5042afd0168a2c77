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
    "resnet18": (256, 4.2, 88),
    "resnet50": (256, 10.6, 221),
    "vit_b_16": (128, 4.8, 174),  # 10.0 with tiles of 64 tokens, each side loaded
}


@pytest.mark.parametrize("name", BUDGETS)
def test_computed_cost_stays_within_its_budget(name):
    samples, most, launches = BUDGETS[name]
    found, launched = cost.milliseconds(CALLS[name], samples)
    assert 0.9 * most < found <= most and launched <= launches


def test_wider_tiles_and_one_load_on_the_diagonal_are_what_vit_gains(monkeypatch):
    table = cost._settings

    def narrow(target, family, number, bucket):
        narrower = Settings(64, 0, 64, 4, 3)
        return narrower if family == "gram" else table(target, family, number, bucket)

    now, _ = cost.milliseconds(CALLS["vit_b_16"], 128)
    monkeypatch.setattr(cost, "_settings", narrow)
    before, _ = cost.milliseconds(CALLS["vit_b_16"], 128)
    assert 9.9 < before < 10.1 and before > 2 * now
