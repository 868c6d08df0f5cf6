"""Images as people have them: transparent, turned, with 16 bits, and in folders with splits inside."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest

from fedistill.data.image import choose_rendering, decode
from fedistill.data.task import Task
from fedistill.errors import ExperimentError
from helpers.files import Files

Make = Callable[..., Task]
Refused = Callable[..., str]


def cell(picture: PIL.Image.Image, form: str = "PNG", **options: Any) -> Any:
    sink = io.BytesIO()
    picture.save(sink, form, **options)
    return {"bytes": sink.getvalue(), "path": None}


def read(*cells: Any, background: str | None = None, white_level: float | None = None) -> Any:
    rows = np.arange(len(cells), dtype=np.int64)
    return decode(
        cells, rows, "here", None, lambda: choose_rendering([(cells, rows, "here")], background, white_level)
    )


def drawn_in_alpha(mode: str, ink: int) -> PIL.Image.Image:
    """Three pixels of one colour: transparent, half transparent (in a palette: not at all), opaque."""
    alpha = PIL.Image.fromarray(np.array([[0, 128, 255]], dtype=np.uint8))
    grey = PIL.Image.new("L", (3, 1), ink)
    if mode == "P":
        picture = PIL.Image.new("P", (3, 1))
        picture.putpalette([9, 9, 9, ink, ink, ink])
        picture.putdata([0, 1, 1])
        return picture
    return PIL.Image.merge(mode, [*[grey] * (len(mode) - 1), alpha])


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_what_is_drawn_in_the_alpha_channel_shows(mode: str) -> None:
    options = {"transparency": 0} if mode == "P" else {}
    black = read(cell(drawn_in_alpha(mode, 0), **options))
    white = read(cell(drawn_in_alpha(mode, 255), **options))
    # Black ink on white: 255 - alpha. White ink on black: alpha.
    half = (0, 255) if mode == "P" else (127, 128)
    assert black[0, 0].tolist() == [[255, half[0], 0]]
    assert white[0, 0].tolist() == [[0, half[1], 255]]
    assert black.shape[1] == (1 if mode == "LA" else 3)


def test_the_background_is_one_for_all_pictures_and_can_be_set() -> None:
    black, white = cell(drawn_in_alpha("LA", 0)), cell(drawn_in_alpha("LA", 255))
    assert read(black, white, background="#808080")[:, 0].tolist() == [[[128, 64, 0]], [[128, 192, 255]]]
    assert read(black, background="red")[0].tolist() == [[[255, 127, 0]], [[0, 0, 0]], [[0, 0, 0]]]
    with pytest.raises(ExperimentError) as caught:
        read(black, black, white)
    assert str(caught.value) == (
        "here: the image of row 2 (the first is 0) has the colour of the background where it is opaque, so"
        " nothing of it would be left: set task.background to another colour than 'white'"
    )


def test_an_alpha_channel_that_hides_nothing_changes_nothing() -> None:
    colours = PIL.Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    assert (read(cell(colours.convert("RGBA"))) == read(cell(colours))).all()
    grey = colours.convert("L")
    assert (read(cell(grey.convert("LA"))) == read(cell(grey))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_pictures_are_turned_as_datasets_turns_them(orientation: int, form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = orientation
    one = cell(PIL.Image.fromarray(noise), form, exif=exif)
    oracle = np.asarray(datasets.Image().decode_example(one))
    assert (read(one)[0] == oracle.transpose(2, 0, 1)).all()
    assert oracle.shape[:2] == ((4, 6) if orientation < 5 else (6, 4))


def deep(*values: float, kind: Any = np.uint16) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.array([values], dtype=kind))


@pytest.mark.parametrize(
    ("highest", "white"),
    [(1, 1), (2, 255), (255, 255), (256, 1023), (3000, 4095), (5000, 16383), (40000, 65535)],
)
def test_deep_pictures_are_scaled_by_the_bits_that_the_largest_value_needs(highest: int, white: int) -> None:
    dark, light = read(cell(deep(0, highest // 2)), cell(deep(0, highest)))
    # The darker picture stays darker: no picture is scaled by itself.
    assert dark.tolist() == [[[0, round(highest // 2 * 255 / white)]]]
    assert light.tolist() == [[[0, round(highest * 255 / white)]]]


@pytest.mark.parametrize(("kind", "form"), [(np.uint16, "PNG"), (np.int32, "TIFF"), (np.float32, "TIFF")])
def test_the_white_level_can_be_set(kind: Any, form: str) -> None:
    one = cell(deep(0, 1000, 2000, kind=kind), form)
    assert read(one, white_level=2000).tolist() == [[[[0, 128, 255]]]]
    with pytest.raises(ExperimentError) as caught:
        read(one, white_level=1999)
    assert str(caught.value) == (
        "here: the image of row 0 (the first is 0) has the value 2000: raise task.white_level = 1999"
    )


def test_fractions_are_scaled_from_0_to_1_and_other_values_are_refused() -> None:
    assert read(cell(deep(0, 0.5, 1, kind=np.float32), "TIFF")).tolist() == [[[[0, 128, 255]]]]
    for values in ((-1024, 3071), (0, 70000)):
        with pytest.raises(ExperimentError) as caught:
            read(cell(deep(*values, kind=np.int32), "TIFF"))
        assert str(caught.value) == (
            f"here: the image of row 0 (the first is 0) has values from {values[0]} to {values[1]} (mode I):"
            " save the images with values from 0 to 65535"
        )
    with pytest.raises(ExperimentError, match="has values from nan to nan"):
        read(cell(deep(0, np.nan, kind=np.float32), "TIFF"))


def test_the_white_level_is_that_of_training_and_test_data_together(make: Make, files: Files) -> None:
    pictures = [np.full((4, 4), number * 8, dtype=np.uint16) for number in range(16)]
    train = files.images("train.parquet", [files.png(one) for one in pictures[:12]], ["a", "b"] * 6)
    bright = [np.full((4, 4), 4095, dtype=np.uint16)] * 2
    test = files.images("test.parquet", [files.png(one) for one in bright], ["a", "b"])
    task = make(format="parquet", train=train, test=test)
    private = {int(one.max()) for client in task.clients for one in client.samples}
    assert private == {round(number * 8 * 255 / 4095) for number in range(12)}
    assert int(task.test.samples.min()) == 255
    alone = make(format="parquet", train=train)
    values = {int(one.max()) for part in (*alone.clients, alone.test) for one in part.samples}
    assert values == {number * 8 for number in range(12)}  # 88 is the largest: 8 bits, nothing to scale


def test_of_several_frames_the_first_is_taken_as_datasets_takes_it() -> None:
    frames = [PIL.Image.new("L", (2, 2), value) for value in (10, 200)]
    for form in ("GIF", "TIFF"):
        one = cell(frames[0], form, save_all=True, append_images=frames[1:])
        assert np.unique(read(one)).tolist() == [10]
        assert np.unique(np.asarray(datasets.Image(mode="L").decode_example(one))).tolist() == [10]


def split_tree(files: Files, *names: str) -> tuple[str, set[bytes]]:
    """An image folder with a split for each name, and the pixels of the last one."""
    for number, name in enumerate(names):
        tree = {"cat": files.pixels(6, seed=2 * number), "dog": files.pixels(6, seed=2 * number + 1)}
        files.tree(f"data/{name}", **tree)
    last = files.pixels(6, seed=2 * len(names) - 2) + files.pixels(6, seed=2 * len(names) - 1)
    return str(files.folder / "data"), {one.tobytes() for one in last}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"),
        ("training", "val", "evaluation"),
        ("Train", "Test"),
        ("my-train_1", "my-test_1"),
        ("images/train", "images/test"),
        ("train", "dev"),
    ],
)
def test_the_test_split_of_an_image_folder_is_what_is_tested(
    make: Make, files: Files, names: tuple[str, ...]
) -> None:
    folder, last = split_tree(files, *names)
    for keys in ({}, {"test": folder}):
        task = make(format="imagefolder", train=folder, **keys)
        assert task.classes == ("cat", "dog")
        assert {one.numpy().tobytes() for one in task.test.samples} == last
        trained = {one.numpy().tobytes() for client in task.clients for one in client.samples}
        first = files.pixels(6, seed=0) + files.pixels(6, seed=1)
        assert trained == {one.tobytes() for one in first}


def test_splits_are_those_that_datasets_finds(make: Make, files: Files) -> None:
    folder, _ = split_tree(files, "train", "test")
    oracle = datasets.load_dataset("imagefolder", data_dir=folder)
    task = make(format="imagefolder", train=folder)
    assert len(task.test) == len(oracle["test"])
    assert sum(map(len, task.clients)) == len(oracle["train"])
    assert {one.numpy().tobytes() for one in task.test.samples} == {
        np.asarray(row["image"]).tobytes() for row in oracle["test"]
    }


def test_classes_may_be_called_as_splits_are(make: Make, files: Files) -> None:
    folder = files.tree("data", car=files.pixels(6, seed=1), train=files.pixels(6, seed=2))
    assert make(format="imagefolder", train=folder).classes == ("car", "train")


def test_folders_that_mix_splits_and_classes_are_refused(refused: Refused, files: Files) -> None:
    folder = files.tree("flat", train=files.pixels(6, seed=1), test=files.pixels(6, seed=2))
    assert refused(format="imagefolder", train=folder) == (
        f"task.train = {folder}: its images lie in folders named for splits (test, train), not for classes:"
        " inside of each, make one subfolder for each class"
    )
    folder, _ = split_tree(files, "train", "test", "extra")
    assert refused(format="imagefolder", train=folder) == (
        f"task.train = {folder}: 12 of its images, such as {Path('extra/cat/0.png')}, belong to none of its"
        " splits (test, train): name the folders to use with task.train and task.test"
    )


def test_a_folder_without_a_training_split_is_refused(refused: Refused, files: Files) -> None:
    folder, _ = split_tree(files, "val", "test")
    assert refused(format="imagefolder", train=folder) == (
        f"task.train = {folder}: its splits are test, validation, and none is for training: name the training"
        " data with task.train and the test data with task.test"
    )
