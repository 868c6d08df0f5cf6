"""Images that are made by a seed, of few others or of none.

Only integers are drawn and computed with, so that all machines make the same images to the last bit.
"""

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]

_ONE = 256
"""Stands for 1 where fractions are integers: zooms, shears, places between pixels, and opacities."""
_SPAN = 512
"""Shapes lie in a square from -512 to 512, whatever the size of the image."""
_MOST_SHAPES = 6
_MOST_POINTS = 9


def images_of(few: Images, count: int, generator: np.random.Generator) -> Images:
    """Make ``count`` images of few (k, channels, height, width).

    Each begins with a view of one of the few: mirrored or not, zoomed, slanted and moved a little. A third of
    them stay as they are; a third are mixed with a view of another, in shares drawn evenly from 0 to 1; a
    third are cut along a line, behind which there is the view of another. Half of the images show this only
    inside one to six shapes (`shapes`), and black elsewhere.
    """
    made = np.empty((count, *few.shape[1:]), dtype=np.uint8)
    for place in range(count):
        view = _view(few, generator)
        if place % 3 == 1:
            view = _mixed(view, _view(few, generator), generator.integers(_ONE + 1, size=(1, 1)))
        elif place % 3 == 2:
            view = _mixed(view, _view(few, generator), _half(few.shape[2:], generator))
        made[place] = view * _outline(few.shape[2:], generator) if place % 2 else view
    return made


def shapes(shape: tuple[int, ...], count: int, generator: np.random.Generator) -> Images:
    """Draw ``count`` images (channels, height, width) of one to six shapes each on black.

    Shapes are ellipses, rectangles and diamonds of any direction. Half of them have one colour, the others a
    texture, which lies between random colours at the points of a grid. Half of the images are mirrored onto
    themselves, the brighter pixel in front.
    """
    made = np.zeros((count, *shape), dtype=np.uint8)
    for image in made:
        for _ in range(generator.integers(1, _MOST_SHAPES + 1)):
            covered = _shape(shape[1:], generator)
            image[:, covered] = _fill(shape, generator)[:, covered]
        if generator.integers(2):
            np.maximum(image, image[:, :, ::-1].copy(), out=image)
    return made


def _fill(shape: tuple[int, ...], generator: np.random.Generator) -> Whole:
    """Return an image of one colour or of a texture."""
    channels, height, width = shape
    if generator.integers(2):
        return generator.integers(256, size=(channels, 1, 1)) + np.zeros(shape, dtype=np.int64)
    grid = generator.integers(2, _MOST_POINTS + 1, size=2)
    points = generator.integers(256, size=(channels, *grid))
    rows, columns = (
        _ONE * (count - 1) * np.arange(side) // max(side - 1, 1)
        for count, side in zip(grid, (height, width), strict=True)
    )
    return _interpolated(points, rows[:, None], columns[None])


def _view(few: Images, generator: np.random.Generator) -> Whole:
    """Return an image (channels, height, width) like one of the few."""
    image = few[generator.integers(len(few))].astype(np.int64)
    _, height, width = image.shape
    zoom = generator.integers(3 * _ONE // 4, 5 * _ONE // 4 + 1, size=2)
    slant = generator.integers(-_ONE // 4, _ONE // 4 + 1)
    move = [generator.integers(-_ONE * side // 8, _ONE * side // 8 + 1) for side in (height, width)]
    rows, columns = _centred(height)[:, None], _centred(width)
    if generator.integers(2):
        columns = -columns
    down = (_ONE * (height - 1) + zoom[0] * rows) // 2 + move[0]
    right = (_ONE * (width - 1) + zoom[1] * columns + slant * rows) // 2 + move[1]
    return _interpolated(image, down, right)


def _interpolated(image: Whole, down: Whole, right: Whole) -> Whole:
    """Return an image (channels, height, width) at places (n, m) between its pixels; its border goes on."""
    last = image.shape[1] - 1, image.shape[2] - 1
    down, right = np.clip(down, 0, _ONE * last[0]), np.clip(right, 0, _ONE * last[1])
    (upper, y), (left, x) = (down // _ONE, down % _ONE), (right // _ONE, right % _ONE)
    lower, beside = np.minimum(upper + 1, last[0]), np.minimum(left + 1, last[1])
    above = (_ONE - x) * image[:, upper, left] + x * image[:, upper, beside]
    below = (_ONE - x) * image[:, lower, left] + x * image[:, lower, beside]
    return _rounded((_ONE - y) * above + y * below, _ONE * _ONE)


def _mixed(first: Whole, second: Whole, opacity: Whole) -> Whole:
    """Return two images as one; ``opacity`` (height, width) is that of the first."""
    return _rounded(opacity * first + (_ONE - opacity) * second, _ONE)


def _half(size: tuple[int, ...], generator: np.random.Generator) -> Whole:
    """Return an opacity (height, width) of 1 on one side of a line, and of 0 on the other."""
    down, right = _places(size)
    slope = generator.integers(-_ONE, _ONE + 1, size=2)
    beyond = slope[0] * down + slope[1] * right > generator.integers(-_ONE, _ONE + 1) * _SPAN // 2
    opacity: Whole = _ONE * beyond.astype(np.int64)
    return opacity


def _outline(size: tuple[int, ...], generator: np.random.Generator) -> Flags:
    """Return the pixels (height, width) that one to six shapes cover; half of these are mirrored."""
    covered = np.zeros(size, dtype=bool)
    for _ in range(generator.integers(1, _MOST_SHAPES + 1)):
        covered |= _shape(size, generator)
    return covered | covered[:, ::-1] if generator.integers(2) else covered


def _shape(size: tuple[int, ...], generator: np.random.Generator) -> Flags:
    """Return the pixels (height, width) that a shape covers."""
    middle = generator.integers(-_SPAN, _SPAN + 1, size=(2, 2)).sum(axis=0) // 2
    long, wide = generator.integers(_SPAN // 8, 7 * _SPAN // 8, size=2)
    turn = generator.integers(-32, 33, size=2)
    turn[0] += not turn.any()
    down, right = (places - at for places, at in zip(_places(size), middle, strict=True))
    along = np.abs(turn[0] * down + turn[1] * right) * wide
    across = np.abs(turn[0] * right - turn[1] * down) * long
    kind = generator.integers(3)
    if kind == 0:
        reach = along**2 + across**2
    else:
        reach = (along + across if kind == 1 else np.maximum(along, across)) ** 2
    covered: Flags = reach < (long * wide) ** 2 * (turn**2).sum()
    return covered


def _places(size: tuple[int, ...]) -> tuple[Whole, Whole]:
    """Return the places of rows (height, 1) and columns (width,), from -512 to 512."""
    rows, columns = (_centred(side) * _SPAN // side for side in size)
    return rows[:, None], columns


def _centred(side: int) -> Whole:
    """Return the places of pixels in halves of a pixel from the middle."""
    return 2 * np.arange(side) - (side - 1)


def _rounded(value: Whole, unit: int) -> Whole:
    return (value + unit // 2) // unit
