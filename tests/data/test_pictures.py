"""Decoding and scaling of images, by numbers worked out by hand."""

import io
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedistill.data.image import decode, fit_to
from fedistill.errors import ExperimentError
from fedistill.training.loop import to_float


def cell(picture: PIL.Image.Image, form: str = "PNG") -> dict[str, Any]:
    sink = io.BytesIO()
    picture.save(sink, form)
    return {"bytes": sink.getvalue(), "path": None}


def read(*pictures: PIL.Image.Image, size: tuple[int, int] | None = None) -> Any:
    rows = np.arange(len(pictures), dtype=np.int64)
    return decode([cell(one) for one in pictures], rows, "here", size)


RED_GREEN = PIL.Image.new("RGB", (2, 1))
RED_GREEN.putdata([(255, 0, 0), (0, 128, 0)])


def test_channels_come_first_and_rows_before_columns() -> None:
    assert read(RED_GREEN).tolist() == [[[[255, 0]], [[0, 128]], [[0, 0]]]]
    upright = PIL.Image.new("L", (1, 2))
    upright.putdata([3, 7])
    assert read(upright).tolist() == [[[[3], [7]]]]


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)]
)
def test_what_has_no_colour_keeps_one_channel(mode: str, channels: int) -> None:
    assert read(RED_GREEN.convert(mode)).shape == (1, channels, 1, 2)


def test_black_and_white_use_the_whole_range() -> None:
    two = PIL.Image.new("1", (2, 1))
    two.putdata([0, 1])
    assert read(two).tolist() == [[[[0, 255]]]]


def test_one_coloured_image_gives_all_three_channels() -> None:
    grey = PIL.Image.new("L", (2, 1), 9)
    both = read(grey, RED_GREEN)
    assert both[0].tolist() == [[[9, 9]]] * 3
    assert both[1].tolist() == read(RED_GREEN)[0].tolist()


def test_size_is_height_and_width() -> None:
    assert read(PIL.Image.new("L", (10, 4), 50), size=(2, 5)).tolist() == [[[[50] * 5] * 2]]


def test_the_row_of_an_image_of_another_size_is_that_of_the_file() -> None:
    cells = [cell(PIL.Image.new("L", (3, 2))), cell(PIL.Image.new("L", (2, 3)))]
    with pytest.raises(ExperimentError) as caught:
        decode(cells, np.array([40, 17]), "here", None)
    assert str(caught.value) == (
        "here: images differ in size, 2x3 pixels and, in row 17, 3x2; set task.image_size = [height, width]"
    )


def test_scaling_to_half_averages_neighbours() -> None:
    images = np.array([[[[0, 100], [100, 200]]]], dtype=np.uint8)
    assert fit_to(images, (1, 1, 1)).tolist() == [[[[100]]]]
    assert fit_to(images, (3, 1, 1)).tolist() == [[[[100]]] * 3]


def test_colours_become_grey_by_their_mean() -> None:
    images = np.array([[[[10]], [[20]], [[60]]]], dtype=np.uint8)
    assert fit_to(images, (1, 1, 1)).tolist() == [[[[30]]]]


shapes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))


@given(shapes, shapes, st.integers(0, 255))
def test_an_even_image_stays_even_in_any_shape(
    before: tuple[int, ...], after: tuple[int, ...], value: int
) -> None:
    images = np.full((2, *before), value, dtype=np.uint8)
    fitted = fit_to(images, after)
    assert fitted.shape == (2, *after)
    assert fitted.dtype == np.uint8
    assert np.unique(fitted).tolist() == [value]


@given(shapes, st.integers(0, 2**32 - 1))
def test_images_that_fit_are_left_as_they_are(shape: tuple[int, ...], seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (3, *shape)).astype(np.uint8)
    assert np.array_equal(fit_to(images, shape), images)


def test_pixels_become_numbers_from_minus_one_to_one() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert to_float(pixels).tolist() == pytest.approx([-1, -0.6, 1], abs=1e-6)
    # What is stored is not changed.
    assert pixels.tolist() == [0, 51, 255]
