"""Public sets that are stored lossily, made of few images, or drawn."""

import hashlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedistill.config.schema import TaskConfig
from fedistill.data.build import build_task
from fedistill.data.image_sheet import decode_sheet, encode_sheet
from fedistill.data.made_images import Images, images_of, shapes
from fedistill.data.public import stored_bytes
from fedistill.data.task import Task
from fedistill.errors import ExperimentError
from fedistill.rng import numpy_stream
from helpers.files import Files
from helpers.runs import finished

Make = Callable[..., Task]
Refused = Callable[..., str]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def public(task: Task) -> Images:
    assert task.public is not None
    found: Images = task.public.samples.numpy()
    return found


def private(task: Task) -> set[bytes]:
    return {image.numpy().tobytes() for client in task.clients for image in client.samples}


def making(seed: int = 0) -> np.random.Generator:
    """The stream of a task that makes its public samples."""
    return numpy_stream(seed, "made")


def smooth(count: int, channels: int = 1, height: int = 16, width: int = 16) -> Images:
    """Images that WebP keeps well: slopes of brightness, each of another one."""
    slope = np.linspace(0, 200, height * width).reshape(height, width)
    return np.stack([np.stack([slope + 5 * n % 50] * channels) for n in range(count)]).astype(np.uint8)


# What is held out.


def test_a_table_without_a_data_set_holds_samples_out_as_a_number_does(make: Make) -> None:
    table, number = make(name="digits", public={"samples": 30}), make(name="digits", public=30)
    assert table.fingerprint() == number.fingerprint()


def test_images_that_are_made_of_are_no_longer_private(make: Make) -> None:
    held = public(make(name="digits", public=6))
    task = make(name="digits", public={"samples": 50, "images": 6})
    assert not private(task) & {image.tobytes() for image in held}
    assert len(private(task)) == len(private(make(name="digits", public=6)))
    assert public(task).tobytes() == images_of(held, 50, making()).tobytes()


def test_made_samples_have_no_labels_and_stored_ones_keep_theirs(make: Make) -> None:
    as_is = make(name="digits", public=12)
    assert as_is.public_labels is not None
    stored = make(name="digits", public={"samples": 12, "quality": 30})
    assert stored.public_labels is not None
    assert stored.public_labels.equal(as_is.public_labels)
    assert make(name="digits", public={"samples": 12, "images": 3}).public_labels is None
    assert make(name="digits", public={"samples": 12, "images": 0}).public_labels is None


def test_only_what_is_sent_is_counted(make: Make) -> None:
    images = public(make(name="digits", public=12))
    sheet = encode_sheet(images, 30)
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"samples": 12}, stored_bytes(images), "held out from the training data"),
        (
            {"samples": 12, "quality": 30},
            len(sheet),
            "held out from the training data, as WebP of quality 30",
        ),
        (
            {"samples": 99, "images": 12},
            stored_bytes(images),
            "made of 12 images: held out from the training data",
        ),
        (
            {"samples": 99, "images": 12, "quality": 30},
            len(sheet),
            "made of 12 images: held out from the training data, as WebP of quality 30",
        ),
        ({"samples": 99, "images": 0}, 0, "shapes, drawn by the seed"),
    ]
    for keys, size, source in cases:
        found = make(name="digits", public=keys).public
        assert found is not None
        assert (len(found), found.bytes, found.source) == (keys["samples"], size, source)


def test_both_ends_use_what_the_receiver_decodes(make: Make) -> None:
    images = public(make(name="digits", public=12))
    sheet = encode_sheet(images, 0)
    decoded = decode_sheet(sheet, images.shape)
    assert decoded.tobytes() != images.tobytes()
    assert public(make(name="digits", public={"samples": 12, "quality": 0})).tobytes() == decoded.tobytes()
    made = make(name="digits", public={"samples": 40, "images": 12, "quality": 0})
    assert public(made).tobytes() == images_of(decoded, 40, making()).tobytes()


def test_drawn_shapes_take_nothing_from_the_clients(make: Make) -> None:
    drawn, without = make(name="digits", public={"samples": 20, "images": 0}), make(name="digits")
    assert private(drawn) == private(without)
    assert public(drawn).shape == (20, 1, 8, 8)


def test_equal_seeds_make_equal_tasks(make: Make) -> None:
    for keys in ({"samples": 20, "images": 0}, {"samples": 20, "images": 3, "quality": 10}):
        first, again, other = (make(seed=seed, name="digits", public=keys) for seed in (3, 3, 4))
        assert first.fingerprint() == again.fingerprint()
        assert public(first).tobytes() != public(other).tobytes()


def test_samples_may_be_made_of_another_data_set(make: Make, files: Files) -> None:
    train = files.images("train.parquet", files.pixels(12, channels=3), ["no", "yes"] * 6)
    other = {"name": "digits", "samples": 25, "images": 4, "quality": 50}
    task = make(format="parquet", train=train, public=other)
    assert public(task).shape == (25, 3, 8, 8)
    assert len(private(task)) == len(private(make(format="parquet", train=train)))
    assert task.public is not None
    assert task.public.source == "made of 4 images: digits, as WebP of quality 50"


# Refusals.


def test_texts_are_not_made(refused: Refused, files: Files) -> None:
    texts = files.csv("t.csv", text=[f"word{n}" for n in range(20)], label=[0, 1] * 10)
    for setting in ("images", "quality"):
        said = refused(format="csv", train=texts, public={"samples": 5, setting: 2})
        assert said == f"task.public.{setting} is for images, but the task holds texts: leave it out"


def test_more_images_than_there_are_are_refused(refused: Refused, files: Files) -> None:
    assert refused(name="digits", limit=5, public={"samples": 5, "images": 2000}).startswith(
        "task.public.images = 2000, but there are 1438 training samples: nothing would be left"
    )
    other = files.images("public.parquet", files.pixels(9, seed=5))
    assert refused(
        name="digits", public={"format": "parquet", "train": other, "images": 10, "samples": 5}
    ) == ("task.public.images = 10, but there are 9 samples")


def test_a_sheet_has_no_more_images_than_webp_can_hold() -> None:
    with pytest.raises(
        ExperimentError, match=r"^task\.public\.quality: 5 images of 8192x8192 pixels are too "
    ):
        encode_sheet(np.zeros((5, 1, 8192, 8192), dtype=np.uint8), 0)


# Sheets.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "height", "width"), [(1, 16, 16), (7, 16, 16), (5, 8, 24), (5, 24, 8)])
def test_a_sheet_has_every_image_in_its_place(count: int, channels: int, height: int, width: int) -> None:
    images = smooth(count, channels, height, width)
    decoded = decode_sheet(encode_sheet(images, 100), images.shape)
    assert decoded.shape == images.shape
    # Neighbours differ by 5 in brightness, and WebP of grey images keeps them to about 1.
    assert np.abs(decoded.astype(int) - images).mean() < 2


def test_a_sheet_is_a_picture_about_as_wide_as_it_is_high() -> None:
    picture = PIL.Image.open(io.BytesIO(encode_sheet(smooth(10), 50)))
    assert (picture.format, picture.size) == ("WEBP", (4 * 16, 3 * 16))


def test_lower_quality_is_shorter() -> None:
    images = np.stack(Files.pixels(20, 16, 16))[:, None]
    sizes = [len(encode_sheet(images, quality)) for quality in (0, 20, 50, 80, 100)]
    assert sizes == sorted(set(sizes))


# What is made.


def test_all_machines_make_the_same_bits() -> None:
    """Digests of what was made when this was written; only whole numbers are drawn and computed with."""
    few = rng().integers(0, 256, (3, 1, 9, 7)).astype(np.uint8)
    found = [images_of(few, 30, rng(1)), shapes((3, 10, 12), 30, rng(1))]
    assert [hashlib.blake2b(one.tobytes(), digest_size=8).hexdigest() for one in found] == [
        "c97c6af0d7f9c8e1",
        "6172c0f8e4186360",
    ]


def test_of_one_colour_comes_that_colour_and_black() -> None:
    made = images_of(np.full((2, 1, 12, 10), 77, dtype=np.uint8), 60, rng())
    assert np.unique(made).tolist() == [0, 77]
    # Every other image is seen through shapes.
    assert (made[::2] == 77).all()
    assert all((image == 0).any() for image in made[1::2])


def test_mixtures_lie_between_what_is_mixed() -> None:
    few = np.stack([np.full((1, 6, 6), 50), np.full((1, 6, 6), 150)]).astype(np.uint8)
    made = images_of(few, 600, rng())
    views, mixed, cut = made[0::6], made[4::6], made[2::6]
    assert np.unique(views).tolist() == [50, 150]
    assert {len(np.unique(image)) for image in views} == {1}
    assert {len(np.unique(image)) for image in mixed} == {1}
    shares = (mixed[:, 0, 0, 0].astype(int) - 50) / 100
    between = shares[(shares > 0) & (shares < 1)]
    assert len(between) > 30
    assert abs(between.mean() - 0.5) < 0.1
    assert np.unique(cut).tolist() == [50, 150]
    assert any(len(np.unique(image)) == 2 for image in cut)


def test_views_are_near_the_image() -> None:
    """A bright square in the middle stays about where it is, and about as large."""
    image = np.zeros((1, 1, 32, 32), dtype=np.uint8)
    image[0, 0, 8:24, 8:24] = 255
    views = images_of(image, 600, rng())[0::6, 0] / 255
    assert len({view.tobytes() for view in views}) == len(views)
    rows = (views * np.arange(32)[:, None]).sum(axis=(1, 2)) / views.sum(axis=(1, 2))
    assert abs(rows.mean() - 15.5) < 1
    assert 10 < rows.min() < 13.5 < 17.5 < rows.max() < 21
    assert 0.6 * 256 < views.sum(axis=(1, 2)).mean() < 1.4 * 256


def test_half_of_the_drawn_images_are_mirrored() -> None:
    drawn = shapes((1, 20, 20), 300, rng())
    alike = [bool((image == image[:, :, ::-1]).all()) for image in drawn]
    assert 120 < sum(alike) < 200  # some are black, or happen to be
    assert (drawn.max(axis=(1, 2, 3)) > 0).mean() > 0.9


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.integers(0, 9))
def test_any_size_of_image_will_do(channels: int, height: int, width: int, few: int, seed: int) -> None:
    drawn = shapes((channels, height, width), 4, rng(seed))
    assert (drawn.shape, drawn.dtype) == ((4, channels, height, width), np.dtype(np.uint8))
    made = images_of(drawn[:few], 7, rng(seed))
    assert (made.shape, made.dtype) == ((7, channels, height, width), np.dtype(np.uint8))
    assert made.max() <= drawn[:few].max(initial=0)
    # More samples are those, and more.
    assert images_of(drawn[:few], 3, rng(seed)).tobytes() == made[:3].tobytes()


# Methods.


@pytest.mark.parametrize("method", ["voting", "dsfl", "bridge", "feddf"])
@pytest.mark.parametrize("images", [0, 4])
def test_methods_learn_from_it_and_are_charged_for_what_is_sent(method: str, images: int) -> None:
    keys = {"samples": 30, "images": images} | ({"quality": 20} if images else {})
    arm, run = finished(
        {
            "rounds": 3,
            "task": {"name": "digits", "clients": 3, "limit": 60, "public": keys},
            "models": {"clients": ["mlp-s"], "server": "mlp-s"},
            "runtime": {"kind": "serial"},
            "arms": [{"method": method}],
        }
    )
    assert arm.task.public is not None
    at_clients = 0 if method == "feddf" else 3 * arm.task.public.bytes
    assert (run.ledger.public > 0) == (at_clients > 0) == (images > 0 and method != "feddf")
    assert run.ledger.public == at_clients
    assert run.round == 3


def test_a_task_of_validation_has_the_same_public_set() -> None:
    config = TaskConfig.model_validate(
        {"name": "digits", "limit": 300, "public": {"samples": 20, "images": 5, "quality": 10}}
    )
    assert public(build_task(config, 0)).tobytes() == public(build_task(config, 0, validation=True)).tobytes()
