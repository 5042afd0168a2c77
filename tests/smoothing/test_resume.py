"""An interrupted run goes on where it stopped, and ends as if nothing had happened."""

import functools
import operator
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import gradood
from gradood.errors import CheckpointError, InputError

SMOOTHING = gradood.Smoothing(sigma=0.5, n=640, n0=64, tile=32, seed=0)


class Passes:
    """Forward passes that are left before an interruption, as by Ctrl-C; the same for all models.

    Outside of them, for what a model holds is part of its fingerprint.
    """

    left = 0


def interrupted(answer):
    """A model that is interrupted when no passes are left."""

    def run(x):
        Passes.left -= 1
        if Passes.left < 0:
            raise KeyboardInterrupt
        return answer(x)

    return run


def run_with(passes, certify, target, x, settings, **options):
    """What certifying gives with so many passes, and how many it used."""
    Passes.left = passes
    try:
        return certify(target, x, settings=settings, **options), passes - Passes.left
    except KeyboardInterrupt:
        return None, passes


def classes(x):
    return torch.stack([-x[:, 0], x[:, 0]], 1)


def score(x):
    return x[:, 0]


KINDS = {
    "class": (gradood.certify_class, classes, {}),
    "class, sequential": (gradood.certify_class, classes, {"radius": 0.3}),
    "mean": (gradood.certify_mean, lambda x: score(x).sigmoid(), {"radius": 0.3}),
    "quantile": (gradood.certify_quantile, score, {"radius": 0.3}),
    "decision": (gradood.certify_decision, score, {"threshold": 0.2, "radius": 0.3}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_interruptions_lose_nothing_and_change_nothing(kind, points, tmp_path):
    certify, answer, options = KINDS[kind]
    model, x = interrupted(answer), points(1.0, 0.45, -0.6)
    whole, once = run_with(10**6, certify, model, x, SMOOTHING, **options)
    state = tmp_path / "state.safetensors"
    used, runs = 0, 0
    for passes in (10, 11, 3, 9, 1000):
        resumed, some = run_with(passes, certify, model, x, SMOOTHING, state=state, **options)
        used, runs = used + some, runs + 1
        assert state.exists()
        if resumed is not None:
            break
    assert resumed.evidence == whole.evidence
    # Every batch that was finished was kept: none was run twice but for the probes of each run.
    assert used <= once + 9 * (runs - 1)


def test_a_finished_state_needs_no_samples(points, tmp_path):
    state, model = tmp_path / "state.safetensors", interrupted(classes)
    common = (gradood.certify_class, model, points(1.0), SMOOTHING)
    first, _ = run_with(1000, *common, state=state)
    again, _ = run_with(0, *common, state=state)
    assert again.evidence == first.evidence


def test_a_drawn_seed_is_kept_in_the_state(points, tmp_path):
    """Without a seed every run draws one; a state goes on with its own."""
    state, fresh = tmp_path / "state.safetensors", replace(SMOOTHING, seed=None)
    first = gradood.certify_class(classes, points(1.0), settings=fresh, state=state)
    again = gradood.certify_class(classes, points(1.0), settings=fresh, state=state)
    other = gradood.certify_class(classes, points(1.0), settings=fresh)
    assert again.evidence == first.evidence
    seeds = {made.evidence.common["settings"]["seed"] for made in (first, other)}
    assert len(seeds) == 2


class Sided:
    """A score with an attribute that decides."""

    def __init__(self, flip):
        self.flip = flip

    def __call__(self, x):
        return classes(-x if self.flip else x)


class SidedModule(torch.nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.flip = flip

    def forward(self, x):
        return classes(-x if self.flip else x)


def enclosing(flip):
    return lambda x: classes(-x if flip else x)


@pytest.mark.parametrize(
    "model, other",
    [
        (Sided(False), Sided(True)),
        (SidedModule(False), SidedModule(True)),
        (torch.nn.Sequential(SidedModule(False)), torch.nn.Sequential(SidedModule(True))),
        (enclosing(False), enclosing(True)),
        (lambda x: classes(x), lambda x: classes(-x)),
        (functools.partial(classes), functools.partial(lambda x: classes(-x))),
        (Sided(False).__call__, Sided(True).__call__),
        (classes, lambda x: classes(-x)),
    ],
)
def test_a_state_of_another_callable_is_refused(points, tmp_path, model, other):
    state = tmp_path / "state.safetensors"
    gradood.certify_class(model, points(1.0), settings=SMOOTHING, state=state)
    gradood.certify_class(model, points(1.0), settings=SMOOTHING, state=state)
    with pytest.raises(CheckpointError, match="model"):
        gradood.certify_class(other, points(1.0), settings=SMOOTHING, state=state)


def test_what_has_no_fingerprint_keeps_no_state(points, tmp_path):
    model = operator.itemgetter((slice(None), slice(0, 2)))  # compiled code, without attributes
    with pytest.raises(InputError, match="no fingerprint"):
        gradood.certify_class(model, points(1.0), settings=SMOOTHING, state=tmp_path / "state")
    assert gradood.certify_class(model, points(1.0), settings=SMOOTHING).label.shape == (1,)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"settings": gradood.Smoothing(sigma=0.4, n=640, tile=32, seed=0)}, "settings"),
        ({"settings": gradood.Smoothing(sigma=0.5, n=641, tile=32, seed=0)}, "settings"),
        ({"radius": 0.2}, "target"),
        ({"x": torch.ones(1, 4)}, "inputs"),
        ({"ids": [5]}, "inputs"),
        ({"model": torch.nn.Linear(4, 2)}, "model"),
    ],
)
def test_states_of_other_runs_are_refused(points, tmp_path, change, match):
    state = tmp_path / "state.safetensors"
    arguments = {"model": classes, "x": points(1.0), "settings": SMOOTHING, "state": state}
    gradood.certify_class(**arguments)
    with pytest.raises(CheckpointError, match=match):
        gradood.certify_class(**{**arguments, **change})


def test_a_changed_model_cannot_resume(half_space, points, tmp_path):
    state = tmp_path / "state.safetensors"
    gradood.certify_class(half_space, points(1.0), settings=SMOOTHING, state=state)
    with torch.no_grad():
        half_space.normal.add_(1e-3)
    with pytest.raises(CheckpointError, match="model"):
        gradood.certify_class(half_space, points(1.0), settings=SMOOTHING, state=state)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x04]\x94."])
def test_damaged_states_are_refused(points, tmp_path, content):
    state = tmp_path / "state.safetensors"
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match="remove it"):
        gradood.certify_class(classes, points(1.0), settings=SMOOTHING, state=state)


def test_errors_of_the_model_keep_what_was_counted(points, tmp_path):
    state = tmp_path / "state.safetensors"

    def failing(x):
        Passes.left -= 1
        if Passes.left == 0:
            raise RuntimeError("out of memory")
        return classes(x)

    common = (gradood.certify_class, failing, points(1.0), SMOOTHING)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_with(17, *common, state=state)  # 8 of them, and 2 later ones, look for dependence
    resumed, rest = run_with(10**6, *common, state=state)
    whole, once = run_with(10**6, *common)
    assert resumed.evidence == whole.evidence
    assert rest <= once - (17 - 1 - 8 - 2), "what was counted is counted again"


def test_a_denoiser_has_the_same_fingerprint_in_every_process():
    """Diffusers keeps names in the order of a set: an interrupted run could not go on."""
    code = (
        "from gradood.smoothing import embedded_denoiser\n"
        "from gradood.smoothing.fingerprint import fingerprint\n"
        "print(fingerprint(embedded_denoiser()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(found) == 1
