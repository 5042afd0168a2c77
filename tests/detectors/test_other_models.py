"""The presets on models that lack what some parts read: they do without, and say so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradood import GradientDetector
from gradood.detectors.presets import PRESETS
from gradood.evaluation import evaluate

NORMAL, OTHERS = 400, 60


class Prototypes(nn.Module):
    """No linear last layer: logits are similarities to prototypes. Features are those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 32), nn.LayerNorm(32), nn.ReLU())
        self.prototypes = nn.Parameter(torch.randn(4, 32))

    def forward(self, x: Tensor) -> Tensor:
        distances = (self.layers(x)[:, None] - self.prototypes).square().sum(2)
        return -distances / 8


class Convolutional(nn.Module):
    """No penultimate features: classes are channels, and a mean over pixels comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


class Transformer(nn.Module):
    """Patches, a class token and two encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        sequence = torch.cat([self.token.expand(len(x), -1, -1), patches], 1)
        return self.head(self.encoder(sequence)[:, 0])


class TextEncoder(nn.Module):
    """Tokens and a mask, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.head = nn.Linear(16, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(self.embedding(input_ids))
        mask = attention_mask[..., None].to(states.dtype)
        return self.head((states * mask).sum(1) / mask.sum(1))


class OneLogit(nn.Module):
    """Two classes by the sign of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def vectors(count: int, strange: bool) -> Tensor:
    x = torch.randn(count, 12)
    return 3 * x if strange else x


def pictures(count: int, strange: bool) -> Tensor:
    smooth = F.interpolate(torch.rand(count, 3, 4, 4), (16, 16), mode="bilinear")
    return torch.rand(count, 3, 16, 16) if strange else smooth


def texts(count: int, strange: bool) -> dict[str, Tensor]:
    tokens = torch.randint(30, (count, 8)) + 30 * strange
    return {"input_ids": tokens, "attention_mask": torch.ones(count, 8).long()}


#: A model, its inputs, and the parts that it cannot have.
CASES = {
    "prototypes": (Prototypes, vectors, set()),
    "convolutional": (Convolutional, pictures, set()),
    "transformer": (Transformer, pictures, set()),
    "text encoder": (TextEncoder, texts, {"margin drop"}),
    "one logit": (OneLogit, vectors, set()),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", CASES)
def test_a_preset_uses_the_parts_that_exist(case, preset, caplog):
    build, make, lacks = CASES[case]
    torch.manual_seed(0)
    model = build().eval()
    detector = GradientDetector(model, preset=preset, progress=False).fit(make(NORMAL, False))
    wanted, used = set(PRESETS[preset]), {part.name for part in detector.parts}
    assert used <= wanted and not used & lacks
    assert {"layers", "energy" if preset == "adversarial" else "class energy"} <= used
    left_out = wanted - used
    assert left_out >= wanted & lacks
    assert all(f"{name} (" in caplog.text for name in left_out)
    assert bool(caplog.text) == bool(left_out)
    scores = detector.score(make(OTHERS, False)), detector.score(make(OTHERS, True))
    assert evaluate(*scores).auroc > 0.75  # the networks are not trained
