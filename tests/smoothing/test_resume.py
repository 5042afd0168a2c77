"""An interrupted run goes on where it stopped, and ends as if nothing had happened."""

import pytest
import torch

import gradood
from gradood.errors import CheckpointError

SMOOTHING = gradood.Smoothing(sigma=0.5, n=640, n0=64, tile=32)


class Interrupting:
    """A model that is interrupted after some batches, as by Ctrl-C."""

    def __init__(self, answer, batches):
        self.answer, self.left = answer, batches

    def __call__(self, x):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.answer(x)


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
    x = points(1.0, 0.45, -0.6)
    whole = certify(Interrupting(answer, 10**6), x, SMOOTHING, **options)
    state = tmp_path / "state.safetensors"
    batches = 0
    for size in (1, 2, 3, 5, 100):
        model = Interrupting(answer, size)
        try:
            resumed = certify(model, x, SMOOTHING, state=state, **options)
            batches += size - model.left
            break
        except KeyboardInterrupt:
            batches += size
            assert state.exists()
    assert resumed.evidence == whole.evidence
    # Every batch that was finished was kept: none was run twice.
    once = Interrupting(answer, 10**6)
    certify(once, x, SMOOTHING, **options)
    assert batches == 10**6 - once.left


def test_a_finished_state_needs_no_samples(points, tmp_path):
    state = tmp_path / "state.safetensors"
    first = gradood.certify_class(classes, points(1.0), SMOOTHING, state=state)
    again = gradood.certify_class(Interrupting(classes, 0), points(1.0), SMOOTHING, state=state)
    assert again.evidence == first.evidence


@pytest.mark.parametrize(
    "change, match",
    [
        ({"settings": gradood.Smoothing(sigma=0.4, n=640, tile=32)}, "settings"),
        ({"settings": gradood.Smoothing(sigma=0.5, n=641, tile=32)}, "settings"),
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
    gradood.certify_class(half_space, points(1.0), SMOOTHING, state=state)
    with torch.no_grad():
        half_space.normal.add_(1e-3)
    with pytest.raises(CheckpointError, match="model"):
        gradood.certify_class(half_space, points(1.0), SMOOTHING, state=state)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x04]\x94."])
def test_damaged_states_are_refused(points, tmp_path, content):
    state = tmp_path / "state.safetensors"
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match="remove it"):
        gradood.certify_class(classes, points(1.0), SMOOTHING, state=state)


def test_errors_of_the_model_keep_what_was_counted(points, tmp_path):
    state = tmp_path / "state.safetensors"

    def failing(x):
        if failing.left == 0:
            raise RuntimeError("out of memory")
        failing.left -= 1
        return classes(x)

    failing.left = 7
    with pytest.raises(RuntimeError, match="out of memory"):
        gradood.certify_class(failing, points(1.0), SMOOTHING, state=state)
    whole = gradood.certify_class(classes, points(1.0), SMOOTHING)
    rest = Interrupting(classes, 22 - 7)
    resumed = gradood.certify_class(rest, points(1.0), SMOOTHING, state=state)
    assert resumed.evidence == whole.evidence and rest.left == 0
