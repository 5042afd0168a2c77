"""Changed copies of inputs, and the detectors that read them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradood
from gradood import GradientDetector
from gradood.attacks import pgd
from gradood.detectors.copies import COPIES, copied_logits, margin_drop
from gradood.errors import InputError
from gradood.gradients import GradientNorms, forward_norms
from gradood.inputs import Inputs


class Numbers(nn.Module):
    """A classifier of real numbers of any shape, so many a sample."""

    def __init__(self, *shape: int, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        count = int(torch.tensor(shape).prod())
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(count, 8), nn.ReLU())
        self.last = nn.Linear(8, classes)

    def forward(self, x, scale=None):
        return self.last(self.layers(x if scale is None else x * scale))


class Tokens(nn.Module):
    """A text encoder that pools."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.last = nn.Linear(16, 4)

    def forward(self, tokens):
        return self.last(self.encoder(self.embedding(tokens)).mean(1))


def test_a_picture_is_mirrored_moved_and_blurred_by_noise():
    model, x = Numbers(3, 8, 8).eval(), torch.rand(4, 3, 8, 8)
    logits = copied_logits(model, x)
    torch.testing.assert_close(logits[:, 0], model(x.flip(3)))
    one_before = [0, *range(7)]
    moved = x[:, :, one_before][:, :, :, one_before]
    torch.testing.assert_close(logits[:, 1], model(moved))
    assert not torch.allclose(logits[:, 2], model(x))


@pytest.mark.parametrize("shape", [(6,), (8, 8), (64, 8, 8), (3, 4, 4)])
def test_other_numbers_get_noise_that_is_the_same_in_every_batch(shape):
    model, x = Numbers(*shape).eval(), torch.rand(5, *shape)
    logits = copied_logits(model, x)
    assert logits.shape == (5, COPIES, 3)
    each = torch.cat([copied_logits(model, one[None]) for one in x])
    torch.testing.assert_close(logits, each)
    assert len({tuple(copy[0].tolist()) for copy in logits.unbind(1)}) == COPIES
    # Noise is relative: a constant input has none.
    torch.testing.assert_close(copied_logits(model, x * 0 + 1)[:, 0], model(x * 0 + 1))


def test_only_real_numbers_of_several_tensors_change():
    model, x = Numbers(6).eval(), torch.rand(5, 6)
    scale = torch.arange(1, 6)[:, None]
    batch = {"x": x, "scale": scale}
    detector = GradientDetector(model, parts=["margin drop"])
    norms = detector.fit({"x": torch.rand(60, 6), "scale": torch.ones(60, 1).long()}).norms
    expected = copied_logits(model, x * scale)  # noise is relative, so it may come first
    torch.testing.assert_close(norms(Inputs.of(batch)).copies, expected)


def test_margin_drop_is_what_its_formula_says():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.5]])
    copies = torch.tensor([[[2.0, 1.5, 0.0], [0.0, 1.0, 0.0]], [[0.0, 2.0, 1.5]] * 2])
    norms = GradientNorms(torch.empty(2, 0, 0), (), logits, copies=copies)
    assert margin_drop(norms).tolist() == pytest.approx([2 - (0.5 - 1) / 2, 0])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tokens_have_no_copies_and_the_other_parts_do(caplog):
    model, generator = Tokens().eval(), torch.Generator().manual_seed(0)
    tokens = torch.randint(50, (240, 7), generator=generator)
    detector = GradientDetector(model, preset="adversarial").fit(tokens)
    assert "margin drop (there are no changed copies" in caplog.text
    assert "margin drop" not in [part.name for part in detector.parts]
    assert detector.score(tokens).isfinite().all()


def test_one_logit_has_a_margin():
    model, x = Numbers(6, classes=1).eval(), torch.randn(80, 6)
    detector = GradientDetector(model, parts=["margin drop"]).fit(x)
    assert detector.score(x).std() > 0


def test_attacked_pictures_lose_their_margin(model, pictures):
    """Without the part, small attacks look more normal than what they were made of."""
    x = pictures.normal[:60]
    with torch.no_grad():
        labels = model(x).argmax(1)
    attacked = pgd(model, x, labels=labels, epsilon=8 / 255)
    rows = attacked.success_rounded
    found = {}
    for parts in (["energy"], ["margin drop"]):
        detector = GradientDetector(model, parts=parts).fit(pictures.fit)
        scores = detector.score(x[rows]), detector.score(attacked.rounded[rows])
        found[parts[0]] = gradood.evaluate(*scores).auroc
    assert found["margin drop"] > max(0.8, found["energy"] + 0.1)


def test_norms_without_copies_are_refused(model, pictures):
    detector = GradientDetector(model, preset="adversarial").fit(pictures.fit)
    norms = detector.norms(pictures.normal)
    torch.testing.assert_close(detector.score(norms), detector.score(pictures.normal))
    with pytest.raises(InputError, match="changed copies"):
        detector.score(forward_norms(model, pictures.normal))
