"""Inputs, their numbers and the size of a tile; the noise itself is tested with the operators."""

import pytest
import torch

import gradood
from gradood.ops import grid
from gradood.smoothing.noise import ESTIMATION, SELECTION, NoisyInputs


def noisy(x, ids=None, **options):
    return NoisyInputs(x, ids, gradood.Smoothing(**{"sigma": 0.25, **options}))


def test_copies_are_the_operators(pictures):
    ids = [9, 2**32 - 1, 4, 5, 6, 7]
    made = noisy(pictures, ids, seed=-5, clamp=(0.0, 1.0))
    rows, samples = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2**31])
    expected = grid.grid_batch(
        pictures, rows, torch.tensor(ids)[rows], samples, torch.tensor([-5, SELECTION]),
        0.25, 512.0, 0.0, 1.0, torch.float32, False,
    )  # fmt: skip
    assert torch.equal(made.copies(rows, samples, SELECTION), expected)
    assert not torch.equal(made.copies(rows, samples, ESTIMATION), expected)


@pytest.mark.parametrize(
    "shape, tile",
    [((4,), 64), ((1, 28, 28), 64), ((3, 32, 32), 64), ((3, 64, 64), 16), ((3, 224, 224), 8)],
)
def test_tile_depends_on_the_input_alone(shape, tile):
    for count in (1, 100):
        assert noisy(torch.zeros(1, *shape).expand(count, *shape)).tile == tile
    assert noisy(torch.zeros(2, *shape), tile=5).tile == 5


def test_half_precision_and_layout(pictures):
    made = noisy(pictures, dtype="bfloat16", channels_last=True)
    copies = made.copies(torch.arange(6), torch.arange(6), ESTIMATION)
    assert copies.dtype == torch.bfloat16
    assert copies.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(gradood.errors.InputError, match="channels_last"):
        noisy(torch.zeros(2, 4), channels_last=True)


def test_digest_knows_inputs_and_numbers(pictures):
    digest = noisy(pictures).digest()
    assert noisy(pictures.clone()).digest() == digest
    assert noisy(pictures, [1, 2, 3, 4, 5, 6]).digest() != digest
    assert noisy(pictures + 1e-6).digest() != digest
