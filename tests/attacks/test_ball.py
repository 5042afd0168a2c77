"""Points of balls, in every dtype that a model may take."""

import pytest
import torch
from torch import nn

from gradood.attacks import apgd, fgsm, pgd
from gradood.attacks.ball import make_ball

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
#: What a distance may be above epsilon by, computed in float64: nothing.
LENGTH = {"linf": lambda d: d.abs().amax(1), "l2": lambda d: d.norm(dim=1)}


def distance(points, x, norm):
    return LENGTH[norm]((points.double() - x.double()).flatten(1))


@EVERY_DTYPE
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("limits", [(0.0, 1.0), None])
@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 1 / 255, 0.1, 3.0])
def test_projected_points_are_inside_and_reach_the_border(dtype, norm, limits, epsilon):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, 100, generator=generator).to(dtype)
    x[0], x[1] = 0, 1
    ball = make_ball(x, norm, epsilon, limits)
    far = x + torch.randn(50, 100, generator=generator).to(dtype) * 10
    points = ball.project(far)
    assert points.dtype == dtype
    reached = distance(points, x, norm)
    assert (reached <= epsilon).all()
    if limits is not None:
        assert points.min() >= 0 and points.max() <= 1
    else:  # rounding takes at most a step of the dtype from each of 100 numbers up to 4
        step = 4 * torch.finfo(dtype).eps * (1 if norm == "linf" else 10)
        assert (reached >= epsilon * (1 - 1e-6) - step).all()


@EVERY_DTYPE
@pytest.mark.parametrize(
    "attack,norm", [(fgsm, "linf"), *((a, n) for a in (pgd, apgd) for n in ("linf", "l2"))]
)
def test_attacked_images_stay_within_epsilon(dtype, attack, norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 5)).to(dtype)
    x = torch.rand(16, 3, 4, 4).to(dtype)
    labels = model.eval()(x).argmax(1)
    for epsilon in (1 / 255, 8 / 255):
        options = {} if attack is fgsm else {"norm": norm}
        if attack is apgd:
            options |= {"steps": 5, "restarts": 3, "progress": False}
        found = attack(model, x, labels=labels, epsilon=epsilon, **options)
        assert found.images.dtype == dtype
        reached = distance(found.images, x, norm)
        assert (reached <= epsilon).all() and reached.max() > 0
