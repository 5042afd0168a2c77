"""The joint model keeps the classifier's answers, and its confidence its guarantee."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gradood import Smoothing, certify_mean
from gradood.data import embedded_classifier, embedded_images, embedded_labels
from gradood.distro import (
    JointModel,
    discriminator,
    embedded_discriminator,
    guaranteed_confidence,
    joint_confidence,
    joint_log_probabilities,
    load_discriminator,
    smoothing_radius,
)
from gradood.errors import CheckpointError, InputError

EPSILON = 0.01
SETS = ("fashion-mnist", "mnist", "photos", "glyphs")


@pytest.fixture(scope="module")
def joint():
    return JointModel(embedded_classifier(), embedded_discriminator()).eval()


def test_probabilities_are_a_mixture():
    logits = torch.randn(50, 7, dtype=torch.float64)
    d = 6 * torch.randn(50, 1, dtype=torch.float64)
    p = d.sigmoid()
    probabilities = joint_log_probabilities(logits, d).exp()
    torch.testing.assert_close(probabilities, p * logits.softmax(1) + (1 - p) / 7)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(
        joint_confidence(logits.softmax(1).amax(1), d, 7), probabilities.amax(1)
    )
    sure = joint_log_probabilities(logits, torch.full((50,), -500.0, dtype=torch.float64))
    torch.testing.assert_close(sure.exp(), torch.full_like(sure, 1 / 7))
    with pytest.raises(InputError, match=r"\[N, K\]"):
        joint_log_probabilities(logits, d[:3])


@torch.no_grad()
def test_answers_on_normal_pictures_are_the_classifiers(joint):
    x, labels = embedded_images("fashion-mnist"), embedded_labels("fashion-mnist")
    predicted = joint(x).argmax(1)
    assert torch.equal(predicted, joint.classifier(x).argmax(1))
    assert (predicted == labels).float().mean() > 0.9
    assert joint(x).exp().amax(1).median() > 0.9


@pytest.mark.parametrize("name", SETS)
def test_7_no_attack_within_the_box_exceeds_the_bound(joint, name):
    """The bound is of the discriminator that runs, on the input that it sees.

    Signed gradients of the confidence, and random corners; the published code bounds a network on x
    and runs it on the denoised x, where the bound says nothing.
    """
    x = embedded_images(name)[:20]
    bound = guaranteed_confidence(
        x, discriminator=joint.discriminator, classes=10, norm="linf", radius=EPSILON
    )
    assert (bound.norm, bound.radius, bound.classifier) == ("linf", EPSILON, None)
    moved = x.clone()
    for step in range(10):
        moved.requires_grad_(True)
        d = joint.discriminator(moved)[:, 0]
        (slope,) = torch.autograd.grad(d.sum(), moved)
        moved = moved.detach() + EPSILON * (0.5 if step else 1) * slope.sign()
        moved = moved.clamp(x - EPSILON, x + EPSILON).clamp(0, 1)
        with torch.no_grad():
            p = joint.discriminator(moved)[:, 0].double().sigmoid()
            assert (p <= bound.discriminator + 1e-6).all()
            assert (joint(moved).exp().amax(1) <= bound.upper + 1e-6).all()
    with torch.no_grad():
        gained = joint.discriminator(moved) - joint.discriminator(x)
        assert (gained > 0).float().mean() > 0.9
        corners = (x + EPSILON * torch.randint(0, 2, (50, *x.shape)).mul(2).sub(1)).clamp(0, 1)
        confidence = joint(corners.flatten(0, 1)).exp().amax(1).view(50, -1)
        assert (confidence <= bound.upper + 1e-6).all()


def test_the_guarantee_is_worth_something():
    network = embedded_discriminator()
    median = {
        name: guaranteed_confidence(
            embedded_images(name), discriminator=network, classes=10, norm="linf", radius=EPSILON
        ).upper.median()
        for name in SETS
    }
    assert median["fashion-mnist"] > 0.9
    assert max(median[name] for name in SETS[1:]) < 0.5


def test_a_denoised_classifier_is_bounded_in_the_ball_around_the_box():
    """l-infinity 0.01 lies in l2 0.28: there the smoothed part has to be bounded."""
    x = embedded_images("photos")[:3]
    network = embedded_discriminator()
    classifier = embedded_classifier()
    radius = smoothing_radius(x, norm="linf", radius=EPSILON)
    assert radius == pytest.approx(0.28) and smoothing_radius(x, norm="l2", radius=0.25) == 0.25
    settings = Smoothing(sigma=0.5, n=200, progress=False)
    smoothed = certify_mean(
        lambda z: classifier(z).softmax(1).amax(1).clamp(max=1), x, settings=settings, radius=radius
    ).upper[:, 0]
    both, one, other = (
        guaranteed_confidence(
            x, discriminator=net, classes=10, norm="linf", radius=EPSILON, smoothed=bound
        )
        for net, bound in ((network, smoothed), (network, None), (None, smoothed))
    )
    p = both.discriminator
    torch.testing.assert_close(both.upper, p * smoothed + (1 - p) / 10, rtol=1e-5, atol=0)
    assert (both.upper <= one.upper).all() and (both.upper <= other.upper).all()
    assert torch.equal(other.upper, smoothed) and other.discriminator is None


@torch.no_grad()
def test_an_l2_ball_is_served_by_the_box_around_it():
    x = embedded_images("mnist")[:20]
    network = embedded_discriminator()
    bound = guaranteed_confidence(x, discriminator=network, classes=10, norm="l2", radius=0.02)
    step = torch.randn(100, *x.shape)
    step = 0.02 * step / step.flatten(2).norm(dim=2)[..., None, None, None]
    p = network((x + step).clamp(0, 1).flatten(0, 1)).double().sigmoid().view(100, -1)
    assert (p <= bound.discriminator + 1e-6).all()
    torch.testing.assert_close(bound.upper, 0.1 + 0.9 * bound.discriminator, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "change, message", [({"norm": "l1"}, "norm"), ({"smoothed": torch.ones(3)}, "smoothed")]
)
def test_errors(change, message):
    options = {"norm": "linf", "radius": 0.01} | change
    with pytest.raises(InputError, match=message):
        guaranteed_confidence(
            torch.rand(2, 1, 28, 28), discriminator=nn.Flatten(), classes=10, **options
        )


@pytest.mark.parametrize("width, channels, size", [(4, 3, 32), (3, 1, 28), (2, 3, 17)])
def test_a_file_tells_which_pictures_its_discriminator_takes(tmp_path, width, channels, size):
    network = discriminator(width, channels=channels, size=size)
    save_file(network.state_dict(), tmp_path / "file")
    x = torch.rand(2, channels, size, size)
    # A file maps its weights at other addresses, which may change how they are multiplied.
    torch.testing.assert_close(load_discriminator(tmp_path / "file")(x), network(x).detach())


def test_another_file_is_no_discriminator(tmp_path):
    (tmp_path / "file").write_bytes(b"nothing")
    save_file({"0.weight": torch.ones(3)}, tmp_path / "other")
    for path in (tmp_path / "file", tmp_path / "other", tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="train_discriminator"):
            load_discriminator(path)


@torch.no_grad()
def test_the_bound_holds_for_the_model_as_it_runs_in_float32():
    """At radius 0 the bound has nothing but rounding to spare."""
    joint = JointModel(embedded_classifier(), embedded_discriminator())
    x = torch.cat([embedded_images(name)[:300] for name in ("mnist", "fashion-mnist", "photos")])
    confidence = joint(x).exp().amax(1).double()
    share = joint.classifier(x).double().softmax(1).amax(1)
    bound = guaranteed_confidence(
        x,
        discriminator=embedded_discriminator(),
        classes=10,
        norm="linf",
        radius=0.0,
        smoothed=share,
    )
    exact = joint_confidence(share, joint.discriminator(x), 10)
    assert (confidence <= bound.upper).all()
    assert (confidence > exact).any(), "rounding goes both ways"
    assert (bound.upper - exact <= 1e-3).all()
