import pytest
import torch
from hypothesis import given, strategies as st

from gradood.data import ImageSet, embedded_set, halve_by_group, without_duplicates
from gradood.errors import InputError


def grouped(groups: list[int]) -> ImageSet:
    """Real pictures, each different, with the given groups."""
    glyphs = embedded_set("glyphs").select(slice(len(groups)))
    return ImageSet("x", glyphs.pixels, torch.tensor(groups), "MIT", "test")


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 2**32))
def test_halving_never_separates_a_group_and_loses_nothing(groups: list[int], seed: int) -> None:
    if len(set(groups)) < 2:
        return
    whole = grouped(groups)
    first, second = halve_by_group(whole, seed=seed)
    assert not set(first.groups.tolist()) & set(second.groups.tolist())
    count_first, count_second = (len(set(half.groups.tolist())) for half in (first, second))
    assert count_first - count_second in (0, 1)
    both = torch.cat((first.pixels, second.pixels)).flatten(1).tolist()
    assert sorted(both) == sorted(whole.pixels.flatten(1).tolist())


def test_halving_depends_on_the_seed_alone() -> None:
    whole = grouped(list(range(30)))
    again = [halve_by_group(whole, seed=seed)[0].groups.tolist() for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def test_one_group_cannot_be_halved() -> None:
    with pytest.raises(InputError, match="at least 2"):
        halve_by_group(grouped([4, 4, 4]))


def test_duplicates_go_and_the_first_of_each_stays_in_order() -> None:
    one = grouped([0, 1, 2, 3])
    repeated = one.select(torch.tensor([2, 0, 2, 1, 0, 3]))
    assert without_duplicates(repeated).groups.tolist() == [2, 0, 1, 3]
    # One changed pixel makes another picture.
    pixels = repeated.pixels.clone()
    pixels[2, 0, 27, 27] ^= 1
    changed = ImageSet("x", pixels, repeated.groups, "MIT", "test")
    assert without_duplicates(changed).groups.tolist() == [2, 0, 2, 1, 3]


def test_images_are_the_pixels_in_zero_to_one() -> None:
    photos = embedded_set("photos")
    assert photos.images.dtype == torch.float32
    assert torch.equal((photos.images * 255).round().byte(), photos.pixels)
    assert photos.images.min() >= 0 and photos.images.max() <= 1


def test_samples_are_different_pictures_drawn_by_seed() -> None:
    whole = grouped(list(range(20)))
    drawn = whole.sample(8, seed=1).groups.tolist()
    assert len(set(drawn)) == 8
    assert (
        drawn == whole.sample(8, seed=1).groups.tolist() != whole.sample(8, seed=2).groups.tolist()
    )
    assert sorted(whole.sample(50).groups.tolist()) == list(range(20))


def test_wrong_shapes_and_types_are_refused() -> None:
    groups = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match="uint8"):
        ImageSet("x", torch.zeros(2, 1, 28, 28), groups, "MIT", "test")
    with pytest.raises(InputError, match=r"\[2, 28, 28\]"):
        ImageSet("x", torch.zeros(2, 28, 28, dtype=torch.uint8), groups, "MIT", "test")
    pixels = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    with pytest.raises(InputError, match="groups"):
        ImageSet("x", pixels, groups[:1], "MIT", "test")
    with pytest.raises(InputError, match="labels"):
        ImageSet("x", pixels, groups, "MIT", "test", labels=groups[:1])
