"""The one type that every loader returns, and how it is cut into halves without a leak."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradood.arguments import checked
from gradood.errors import InputError


@checked
@dataclass(frozen=True)
class ImageSet:
    """Pictures of one size with what is needed to split and to cite them.

    Attributes:
        name: Short name, as tables print it.
        pixels: Uint8 ``[N, 1, H, W]``, grey, 0 (black) to 255, or ``[N, 3, H, W]``, RGB.
        groups: Int64 ``[N]``. Pictures of one group are related (glyphs of one font family, patches
            of one photo) and must stay on one side of a split.
        licence: SPDX identifier or a short sentence with the terms.
        source: Where the pictures come from.
        labels: Int64 ``[N]`` classes, or None where the set has none.
    """

    name: str
    pixels: Tensor
    groups: Tensor
    licence: str
    source: str
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if self.pixels.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
            raise InputError(
                f"{self.name}: pixels must be uint8 [N, 1, H, W] or [N, 3, H, W], "
                f"got {self.pixels.dtype} {list(shape)}."
            )
        for what, column in (("groups", self.groups), ("labels", self.labels)):
            if column is not None and tuple(column.shape) != shape[:1]:
                raise InputError(
                    f"{self.name}: {what} must be [{shape[0]}], got {list(column.shape)}."
                )

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def images(self) -> Tensor:
        """float32 ``[N, C, H, W]`` in [0, 1], what the networks take."""
        return self.pixels.to(torch.float32) / 255

    def select(self, rows: Tensor | slice) -> "ImageSet":
        """The pictures at ``rows``: indices, a boolean mask or a slice."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, pixels=self.pixels[rows], groups=self.groups[rows], labels=labels)

    def sample(self, count: int, *, seed: int = 0) -> "ImageSet":
        """``count`` different pictures drawn at random, or all of them if there are fewer."""
        generator = torch.Generator().manual_seed(seed)
        return self.select(
            torch.randperm(len(self), generator=generator, dtype=torch.int64, device="cpu")[:count]
        )


@checked
def without_duplicates(image_set: ImageSet) -> ImageSet:
    """Drop exact copies, pixel for pixel, keeping the first of each in the order given."""
    flat = image_set.pixels.flatten(1).numpy()
    _, first = np.unique(flat, axis=0, return_index=True)
    return image_set.select(torch.from_numpy(np.sort(first)))


@checked
def halve_by_group(image_set: ImageSet, *, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Split into two disjoint sets such that no group has pictures in both.

    Groups are shuffled and cut in the middle of the list of groups (the first half gets the odd
    one), so with groups of unequal size the halves hold unequal numbers of pictures.

    Args:
        image_set: What to split; needs two groups or more.
        seed: Same seed, same split.

    Returns:
        ``(first, second)``: by the convention of the benchmarks the first one may be trained on,
        the second one is scored.

    Raises:
        InputError: There are fewer than two groups.
    """
    groups = torch.unique(image_set.groups)
    if len(groups) < 2:
        raise InputError(
            f"{image_set.name} has {len(groups)} group(s), and halving by group needs at least 2."
        )
    order = torch.randperm(
        len(groups), generator=torch.Generator().manual_seed(seed), dtype=torch.int64, device="cpu"
    )
    in_first = torch.isin(image_set.groups, groups[order[: (len(groups) + 1) // 2]])
    return image_set.select(in_first), image_set.select(~in_first)
