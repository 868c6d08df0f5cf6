"""Augmentations against slow twins that change one sample at a time, from the same numbers."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from fedistill.config.training import Augment
from fedistill.training.augmentation import augmentation, crop, drop_words, erase, flip

Pixels = list[list[list[int]]]
images = st.tuples(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99)
).map(lambda drawn: made(*drawn))


def made(count: int, channels: int, height: int, width: int, seed: int) -> Tensor:
    shape = (count, channels, height, width)
    return torch.randint(1, 256, shape, generator=generator(seed)).to(torch.uint8)


def generator(seed: int = 7) -> Generator:
    return torch.Generator().manual_seed(seed)


def same(found: Tensor, expected: list[Pixels], like: Tensor) -> None:
    assert found.shape == like.shape
    assert found.dtype == like.dtype
    assert found.tolist() == expected


@given(images)
def test_flip(batch: Tensor) -> None:
    chances = torch.rand(len(batch), generator=generator()).tolist()
    expected = [
        [[row[::-1] if chance < 0.5 else row for row in plane] for plane in image]
        for image, chance in zip(batch.tolist(), chances, strict=True)
    ]
    same(flip(batch, generator()), expected, batch)


@given(images, st.integers(1, 4))
def test_crop(batch: Tensor, padding: int) -> None:
    count, _, height, width = batch.shape
    tops, lefts = torch.randint(2 * padding + 1, (2, count, 1), generator=generator()).squeeze(2).tolist()

    def pixel(plane: list[list[int]], y: int, x: int) -> int:
        return plane[y][x] if 0 <= y < height and 0 <= x < width else 0

    expected = [
        [
            [
                [pixel(plane, y + top - padding, x + left - padding) for x in range(width)]
                for y in range(height)
            ]
            for plane in image
        ]
        for image, top, left in zip(batch.tolist(), tops, lefts, strict=True)
    ]
    same(crop(batch, padding, generator()), expected, batch)


@given(images, st.sampled_from([0.0, 0.5, 1.0]))
def test_erase(batch: Tensor, probability: float) -> None:
    count, _, height, width = batch.shape
    numbers = torch.rand(5, count, 1, generator=generator()).squeeze(2)
    expected = batch.tolist()
    for place, image in enumerate(expected):
        chosen, size, shape, down, right = (float(one) for one in numbers[:, place])
        if chosen >= probability:
            continue
        area = height * width * (0.02 + size * (1 / 3 - 0.02))
        ratio = 0.3 ** (1 - shape) * (1 / 0.3) ** shape
        tall = min(max(round(math.sqrt(area * ratio)), 1), height)
        wide = min(max(round(math.sqrt(area / ratio)), 1), width)
        top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
        for plane in image:
            for row in plane[top : top + tall]:
                row[left : left + wide] = [0] * wide
    same(erase(batch, probability, generator()), expected, batch)


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.3, 0.9]),
)
def test_drop_words(texts: list[list[int]], probability: float) -> None:
    batch = torch.tensor([text + [0] * (8 - len(text)) for text in texts], dtype=torch.int32)
    chances = torch.rand(batch.shape, generator=generator()).tolist()
    expected = []
    for text, row in zip(texts, chances, strict=True):
        kept = [word for word, chance in zip(text, row, strict=False) if chance >= probability] or text
        expected.append(kept + [0] * (8 - len(kept)))
    found = drop_words(batch, probability, generator())
    assert found.dtype == torch.int32
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("wanted", "alone"),
    [
        (Augment(flip=True), lambda batch: flip(batch, generator())),
        (Augment(crop=2), lambda batch: crop(batch, 2, generator())),
        (Augment(erase=0.7), lambda batch: erase(batch, 0.7, generator())),
        (Augment(), lambda batch: batch),
    ],
)
def test_settings_name_the_changes(wanted: Augment, alone: Callable[[Tensor], Tensor]) -> None:
    batch = made(6, 1, 8, 8, 0)
    change = augmentation(wanted, generator())
    assert change is not None
    assert torch.equal(change(batch), alone(batch))


def test_changes_come_one_after_the_other_and_each_batch_anew() -> None:
    batch, numbers = made(6, 3, 8, 8, 0), generator()
    change = augmentation(Augment(flip=True, crop=1, erase=0.5), generator())
    assert change is not None
    seen = []
    for _ in range(2):
        seen.append(change(batch))
        assert torch.equal(seen[-1], erase(crop(flip(batch, numbers), 1, numbers), 0.5, numbers))
    assert not torch.equal(*seen)


def test_nothing_is_changed_without_settings() -> None:
    assert augmentation(None, generator()) is None


@settings(max_examples=10)
@given(st.integers(0, 99))
def test_half_of_the_images_are_mirrored_and_a_share_erased(seed: int) -> None:
    batch = torch.full((2000, 1, 6, 6), 9, dtype=torch.uint8)
    batch[:, :, :, :3] = 1
    mirrored = (flip(batch, generator(seed))[:, 0, 0, 0] == 9).float().mean()
    erased = (erase(batch, 0.25, generator(seed)) == 0).flatten(1).any(dim=1).float().mean()
    assert float(mirrored) == pytest.approx(0.5, abs=0.06)
    assert float(erased) == pytest.approx(0.25, abs=0.06)
