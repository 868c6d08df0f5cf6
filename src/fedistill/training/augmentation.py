"""Changed copies of a batch: flipped, cropped and erased images, and texts without some of their words.

Each takes a batch as a task stores it, uint8 images (b, C, H, W) or int32 token ids (b, length), and a
generator, and returns a new batch of the same shape and type. All samples of a batch are changed at once.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from fedistill.config.training import Augment

_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 1 / 0.3)
"""Least and largest share of an image's pixels that are erased, and of height to width, as in the paper."""


def augmentation(settings: Augment | None, generator: Generator) -> Callable[[Tensor], Tensor] | None:
    """Return what changes a batch as the settings say, by new draws for each; None if they say nothing."""
    if settings is None:
        return None
    chosen = settings
    if chosen.drop_words:
        return lambda texts: drop_words(texts, chosen.drop_words, generator)

    def change(images: Tensor) -> Tensor:
        if chosen.flip:
            images = flip(images, generator)
        if chosen.crop:
            images = crop(images, chosen.crop, generator)
        if chosen.erase:
            images = erase(images, chosen.erase, generator)
        return images

    return change


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image, left to right, with a probability of a half."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """Surround each image with black, ``padding`` pixels wide, and cut its size out anywhere."""
    count, _, height, width = images.shape
    top, left = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    bordered = pad(images, [padding] * 4).permute(0, 2, 3, 1)
    each = torch.arange(count)[:, None, None]
    return bordered[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Blacken a rectangle of random size, shape and place in each image, with a probability.

    Source: Zhong et al., arXiv 1708.04896; there the rectangle is filled with noise, and one that does not
    fit is drawn again, where here it is cut to the image's size.
    """
    count, _, height, width = images.shape
    chosen, area, ratio, down, right = torch.rand(5, count, 1, generator=generator)
    area = height * width * (_ERASED_AREA[0] + area * (_ERASED_AREA[1] - _ERASED_AREA[0]))
    low, high = map(math.log, _ERASED_RATIO)
    ratio = torch.exp(low + ratio * (high - low))
    tall = (area * ratio).sqrt().round().clamp(1, height)
    wide = (area / ratio).sqrt().round().clamp(1, width)
    rows = _within(torch.arange(height), (down * (height - tall + 1)).floor(), tall)
    columns = _within(torch.arange(width), (right * (width - wide + 1)).floor(), wide)
    erased = (chosen < probability)[:, :, None] & rows[:, :, None] & columns[:, None, :]
    return images.masked_fill(erased[:, None], 0)


def drop_words(texts: Tensor, probability: float, generator: Generator) -> Tensor:
    """Take out each word with a probability, and close the gaps; where none would be left, all are kept."""
    words = texts != 0
    kept = words & (torch.rand(texts.shape, generator=generator) >= probability)
    kept = torch.where(kept.any(dim=1, keepdim=True), kept, words)
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    return texts.masked_fill(~kept, 0).gather(1, order)


def _within(places: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Return which places (n,) are in the ranges that begin at (b, 1), of lengths (b, 1), as (b, n)."""
    return (places >= start) & (places < start + length)
