import numpy as np
import pytest
import torch

from gradood.data import (
    embedded_set,
    gaussian_noise,
    inverted,
    pixel_shuffled,
    rotated,
    uniform_noise,
)
from gradood.errors import InputError

NORMAL = embedded_set("fashion-mnist").select(slice(100))


def test_uniform_noise_is_uniform_on_every_byte() -> None:
    pixels = uniform_noise(400).pixels
    counts = torch.bincount(pixels.flatten().long(), minlength=256).double()
    expected = pixels.numel() / 256
    # Chi-square with 255 degrees of freedom: mean 255, standard deviation 22.6.
    assert ((counts - expected).square() / expected).sum() < 255 + 5 * 22.6


def test_gaussian_noise_has_the_mean_and_spread_it_states() -> None:
    values = gaussian_noise(400).pixels.double()
    # 4.6 % of a normal distribution lies beyond 1.99 standard deviations, and is clipped.
    share_at_the_ends = ((values == 0) | (values == 255)).double().mean()
    assert abs(share_at_the_ends - 0.0466) < 0.003
    inside = values[(values > 127.5 - 64) & (values < 127.5 + 64)]
    assert abs(len(inside) / values.numel() - 0.6827) < 0.005
    assert abs(values.mean() - 127.5) < 0.5


@pytest.mark.parametrize("make", [uniform_noise, gaussian_noise])
def test_noise_depends_on_the_seed_alone(make) -> None:  # type: ignore[no-untyped-def]
    assert torch.equal(make(5, seed=3).pixels, make(5, seed=3).pixels)
    assert not torch.equal(make(5, seed=3).pixels, make(5, seed=4).pixels)


def test_shuffling_keeps_every_histogram_and_no_picture() -> None:
    shuffled = pixel_shuffled(NORMAL)
    before, after = NORMAL.pixels.flatten(1), shuffled.pixels.flatten(1)
    assert torch.equal(before.sort(1).values, after.sort(1).values)
    assert not (before == after).all(1).any()
    # Each picture has an order of its own.
    same = NORMAL.select(torch.zeros(2, dtype=torch.int64))
    assert not torch.equal(*pixel_shuffled(same).pixels)


def test_inverting_is_the_negative() -> None:
    np.testing.assert_array_equal(inverted(NORMAL).pixels, 255 - NORMAL.pixels.int())


def test_rotating_turns_counter_clockwise() -> None:
    np.testing.assert_array_equal(
        rotated(NORMAL).pixels, np.rot90(NORMAL.pixels.numpy(), axes=(2, 3))
    )
    half = rotated(NORMAL, degrees=180).pixels
    assert torch.equal(rotated(rotated(NORMAL)).pixels, half)
    for degrees in (0, 45, 360):
        with pytest.raises(InputError, match="degrees"):
            rotated(NORMAL, degrees=degrees)


@pytest.mark.parametrize("make", [pixel_shuffled, inverted, rotated])
def test_distorted_pictures_stay_in_the_group_of_their_source(make) -> None:  # type: ignore[no-untyped-def]
    assert torch.equal(make(NORMAL).groups, NORMAL.groups)
    assert make(NORMAL).name.startswith("fashion-mnist-")
