import math

import pytest
import torch
from torch import nn

from gradood.attacks import apgd, bim, carlini_wagner, deepfool, fgsm, least_likely, negation, pgd
from gradood.data import embedded_classifier, embedded_images, embedded_labels
from gradood.errors import InputError, ModelError

EPSILON = 8 / 255
ATTACKS = pytest.mark.parametrize("attack", [fgsm, pgd], ids=["fgsm", "pgd"])


@pytest.fixture(scope="module")
def model():
    return embedded_classifier()


@pytest.fixture(scope="module")
def known(model):
    """Forty test pictures that the classifier gets right, with their labels."""
    x, labels = embedded_images("fashion-mnist")[:60], embedded_labels("fashion-mnist")[:60]
    with torch.no_grad():
        right = model(x).argmax(1) == labels
    return x[right][:40], labels[right][:40]


@ATTACKS
@pytest.mark.parametrize("epsilon", [0.0, 2 / 255, EPSILON, 0.5])
def test_images_stay_in_the_ball_and_in_range(attack, epsilon, model, known):
    x, labels = known
    result = attack(model, x, labels=labels, epsilon=epsilon)
    assert (result.images - x).abs().max() <= epsilon + 1e-6
    assert (result.rounded - x).abs().max() <= epsilon + 0.5 / 255 + 1e-6
    for images in (result.images, result.rounded):
        assert images.min() >= 0 and images.max() <= 1
    levels = result.rounded * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


@ATTACKS
def test_success_is_what_the_classifier_says(attack, model, known):
    x, labels = known
    result = attack(model, x, labels=labels, epsilon=EPSILON)
    with torch.no_grad():
        assert torch.equal(result.success, model(result.images).argmax(1) != labels)
        assert torch.equal(result.success_rounded, model(result.rounded).argmax(1) != labels)


def test_attacks_fool_the_embedded_classifier_and_noise_does_not(model, known):
    x, labels = known
    stronger = pgd(model, x, labels=labels, epsilon=EPSILON)
    weaker = fgsm(model, x, labels=labels, epsilon=EPSILON)
    nothing = pgd(model, x, labels=labels, epsilon=EPSILON, steps=0)
    assert stronger.success_rounded.float().mean() > 0.9
    assert weaker.success_rounded.float().mean() > 0.3
    assert stronger.success.sum() > weaker.success.sum() > nothing.success.sum()


def test_a_seed_gives_the_same_images_at_every_batch_size(model, known):
    x, labels = known
    one, other = (
        pgd(model, x, labels=labels, steps=2, seed=3, batch_size=b).images for b in (40, 40)
    )
    assert torch.equal(one, other)
    starts = [pgd(model, x, labels=labels, steps=0, seed=3, batch_size=b).images for b in (7, 40)]
    assert torch.equal(*starts)
    assert not torch.equal(one, pgd(model, x, labels=labels, steps=2, seed=4).images)


def test_fgsm_on_a_linear_model_moves_along_the_weights():
    model = nn.Linear(4, 2, bias=False).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1, 2, 0], [0, 0, 0, 0]]))
    x = torch.full((1, 4), 0.5)
    images = fgsm(model, x, labels=torch.tensor([0]), epsilon=0.1).images
    torch.testing.assert_close(images, torch.tensor([[0.4, 0.6, 0.4, 0.5]]))


def test_a_confident_prediction_still_has_a_direction():
    # softmax - 1 is exactly 0 in float32 here, and e^-60 in float64.
    model = nn.Linear(1, 2, bias=False).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[60.0], [0.0]]))
    images = fgsm(model, torch.ones(1, 1) * 0.5, labels=torch.tensor([0]), epsilon=0.1).images
    torch.testing.assert_close(images, torch.tensor([[0.4]]))


def test_model_and_inputs_come_back_untouched(model, known):
    x, labels = known
    before = x.clone()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        pgd(model, x, labels=labels, steps=1)
    assert torch.equal(x, before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_no_images_give_no_images(model):
    result = pgd(model, torch.empty(0, 1, 28, 28), labels=torch.empty(0, dtype=torch.int64))
    assert result.images.shape == (0, 1, 28, 28) and result.success.shape == (0,)


@ATTACKS
def test_bad_input(attack, model, known):
    x, labels = known
    for images, classes, options, message in (
        (x * 255, labels, {}, r"\[0, 1\]"),
        ((x * 255).to(torch.uint8), labels, {}, "uint8"),
        (x, labels[:3], {}, "labels"),
        (x, labels.float(), {}, "int64"),
        (x, labels, {"epsilon": -0.1}, "epsilon"),
    ):
        with pytest.raises(InputError, match=message):
            attack(model, images, labels=classes, **options)
    with pytest.raises(ModelError, match="eval"):
        attack(embedded_classifier().train(), x, labels=labels)


def test_rounding_can_undo_an_attack():
    # Class 0 while the pixel is above 127.8 levels: 0.4 levels down fool it, and round back.
    model = nn.Linear(1, 2).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[255.0], [0.0]]))
        model.bias.copy_(torch.tensor([-127.8, 0.0]))
    result = fgsm(model, torch.tensor([[128 / 255]]), labels=torch.tensor([0]), epsilon=0.4 / 255)
    assert result.success.tolist() == [True]
    assert result.success_rounded.tolist() == [False]


@pytest.mark.parametrize("label", [-100, -1, 10, 1 << 40])
def test_a_label_that_names_no_class_is_refused(label, model, known):
    x, labels = known
    labels = labels.clone()
    labels[3] = label
    for attack in (fgsm, pgd, bim, least_likely, negation, apgd, deepfool, carlini_wagner):
        with pytest.raises(InputError, match=f"classes 0 to 9, the first {label}"):
            attack(model, x, labels=labels)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_the_model_makes_nan_or_inf_of_is_no_prediction(value):
    class Breaks(nn.Linear):
        def forward(self, x):
            return super().forward(x).masked_fill(x[:, :1] > 0.9, value)

    model = Breaks(4, 2).eval()
    x, labels = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    found = negation(model, torch.full((3, 4), 0.05), labels=labels)  # 1 - x breaks the model
    assert found.success.all() and found.success_rounded.all()
    x[1] = 0.95
    for attack in (fgsm, pgd, apgd, negation):
        with pytest.raises(ModelError, match=r"1 of 3 rows \(1\)"):
            attack(model, x, labels=labels)


class WithoutGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    @torch.no_grad()
    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize("attack", [fgsm, bim, pgd, least_likely, apgd, deepfool])
def test_a_model_without_gradient_is_refused_and_not_called_robust(attack):
    if attack is deepfool:
        pytest.importorskip("foolbox")
    model, x = WithoutGradient().eval(), torch.rand(4, 1, 4, 4)
    labels = model(x).argmax(1)
    with pytest.raises(ModelError, match="no gradient with respect to its input"):
        attack(model, x, labels=labels)


def test_wrappers_of_an_evaluated_model_have_no_mode_of_their_own():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(4, 1, 4, 4)
    labels = network(x).argmax(1)
    expected = pgd(network, x, labels=labels).images
    for made in (
        nn.DataParallel(network),
        nn.Sequential(network),
        torch.compile(network, backend="eager"),
    ):
        made.training = True  # as a new wrapper is, whatever it wraps
        assert torch.equal(pgd(made, x, labels=labels).images, expected)
    made = nn.Sequential(network, nn.Dropout(0.1))
    with pytest.raises(ModelError, match="training mode"):
        pgd(made, x, labels=labels)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"steps": 1.5}, {"batch_size": 0}])
def test_numbers_of_steps_and_batches_are_whole_and_positive(wrong):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(4, 1, 4, 4)
    with pytest.raises(InputError, match=next(iter(wrong))):
        pgd(network, x, labels=network(x).argmax(1), **wrong)
