"""Another data set as the public set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedistill.config.task import TaskConfig
from fedistill.data.build import build_task
from fedistill.data.public import stored_bytes
from fedistill.data.task import Task
from fedistill.errors import ExperimentError
from helpers.files import Files

Make = Callable[..., Task]
Refused = Callable[..., str]

LABELS = ["no", "yes"] * 6


def test_it_needs_no_labels_and_leaves_the_private_samples_alone(make: Make, files: Files) -> None:
    train = files.images("train.parquet", files.pixels(12), LABELS)
    others = files.pixels(9, seed=5)
    public = {"format": "parquet", "train": files.images("public.parquet", others), "samples": 4}
    task = make(format="parquet", train=train, public=public)
    alone = make(format="parquet", train=train)
    assert task.public is not None
    taken = {image.numpy().tobytes() for image in task.public.samples}
    assert len(taken) == 4
    assert taken < {one.tobytes() for one in others}
    assert task.public.source == "public.parquet"
    assert task.public_labels is None
    assert [len(client) for client in task.clients] == [len(client) for client in alone.clients]
    assert task.test.samples.equal(alone.test.samples)


def test_its_own_labels_may_be_anything(make: Make, files: Files) -> None:
    train = files.images("train.parquet", files.pixels(12), LABELS)
    other = files.images("public.parquet", files.pixels(9, seed=5), [None, "x", "x"] * 3)
    task = make(format="parquet", train=train, public={"format": "parquet", "train": other, "samples": 9})
    assert task.classes == ("no", "yes")
    assert task.public_labels is None


def test_the_seed_draws_it(make: Make, files: Files) -> None:
    train = files.images("train.parquet", files.pixels(12), LABELS)
    other = files.images("public.parquet", files.pixels(30, seed=5))

    def drawn(seed: int) -> bytes:
        public = {"format": "parquet", "train": other, "samples": 10}
        task = make(seed=seed, format="parquet", train=train, public=public)
        assert task.public is not None
        return task.public.samples.numpy().tobytes()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_flat_folder_of_images_will_do(make: Make, files: Files) -> None:
    train = files.images("train.parquet", files.pixels(12), LABELS)
    folder = files.folder / "public"
    folder.mkdir()
    for number, picture in enumerate(files.pixels(5, seed=5)):
        (folder / f"test_{number}.png").write_bytes(files.png(picture))
    public = {"format": "imagefolder", "train": str(folder), "samples": 5}
    task = make(format="parquet", train=train, public=public)
    assert task.public is not None
    assert {image.numpy().tobytes() for image in task.public.samples} == {
        one.tobytes() for one in files.pixels(5, seed=5)
    }


def test_images_are_brought_to_the_size_and_channels_of_the_task(make: Make, files: Files) -> None:
    grey = files.images("grey.parquet", files.pixels(12), LABELS)
    colour = files.images("colour.parquet", files.pixels(12, channels=3), LABELS)
    # One even colour, whose mean is (30 + 60 + 120) / 3 = 70, whatever the size.
    even = np.full((5, 9, 3), (30, 60, 120), dtype=np.uint8)
    public = {"format": "parquet", "train": files.images("public.parquet", [even] * 3), "samples": 3}
    task = make(format="parquet", train=grey, public=public)
    assert task.public is not None
    assert task.public.samples.shape == (3, 1, 8, 8)
    assert task.public.samples.unique().tolist() == [70]
    public = {"name": "digits", "samples": 3}
    task = make(format="parquet", train=colour, public=public)
    assert task.public is not None
    assert task.public.samples.shape == (3, 3, 8, 8)
    assert task.public.samples[:, 0].equal(task.public.samples[:, 1])
    assert task.public.samples[:, 0].equal(task.public.samples[:, 2])
    # What is paid for is what is sent: the images as they are used.
    assert task.public.bytes == stored_bytes(task.public.samples.numpy())


def test_another_kind_of_data_is_refused(refused: Refused) -> None:
    assert refused(name="digits", public={"name": "bbc-news", "samples": 3}) == (
        "task.public holds texts, but the task holds images"
    )


def test_more_samples_than_there_are_are_refused(refused: Refused, files: Files) -> None:
    other = files.images("public.parquet", files.pixels(9, seed=5))
    assert refused(name="digits", public={"format": "parquet", "train": other, "samples": 10}) == (
        "task.public.samples = 10, but there are 9 samples"
    )


def test_the_tasks_own_data_are_refused(
    refused: Refused, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = (
        "task.public names the task's own data, which would put private or test samples into the public set:"
        " hold a part out instead, with task.public = 4"
    )
    monkeypatch.setenv("FEDISTILL_DATA", str(files.folder))
    train = files.images("mnist-train.parquet", files.pixels(12), LABELS)
    test = files.images("mnist-test.parquet", files.pixels(4, seed=9), LABELS[:4])
    tasks: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"name": "digits"}, {"name": "digits"}),
        ({"format": "parquet", "train": train}, {"format": "parquet", "train": train}),
        ({"format": "parquet", "train": train, "test": test}, {"format": "parquet", "train": test}),
        ({"name": "mnist"}, {"name": "mnist"}),
        ({"name": "mnist"}, {"name": "hf:ylecun/mnist"}),
        ({"name": "mnist"}, {"name": "hf:ylecun/mnist", "train": "test"}),
    ]
    for task, public in tasks:
        assert refused(**task, public={**public, "samples": 4}) == said


@pytest.mark.parametrize(
    ("public", "said"),
    [
        (
            {"format": "parquet", "train": "/nowhere.parquet"},
            "task.public.train = /nowhere.parquet: there is",
        ),
        ({"name": "hf:"}, "task.public.name = 'hf:': write hf:OWNER/NAME"),
        (
            {"format": "csv", "train": "COLUMNS"},
            "COLUMNS: cannot tell which column is the input; set task.public.input",
        ),
        (
            {"format": "csv", "train": "COLUMNS", "input": "rhym"},
            "COLUMNS: task.public.input = 'rhym' is not a column; there are rhyme, n. Did you mean 'rhyme'?",
        ),
        (
            {"format": "csv", "train": "COLUMNS", "input": "n"},
            "COLUMNS: column 'n' holds numbers, neither images nor texts; set task.public.input",
        ),
    ],
)
def test_messages_name_the_settings_of_the_public_set(
    refused: Refused, files: Files, public: dict[str, Any], said: str
) -> None:
    path = files.csv("p.csv", rhyme=["a", "b"], n=[1, 2])
    public = {key: value.replace("COLUMNS", path) for key, value in public.items()}
    assert refused(name="digits", public={**public, "samples": 1}).startswith(said.replace("COLUMNS", path))


def parquet_size(path: Path, column: pa.Array) -> int:
    pq.write_table(
        pa.table({"input": column}),
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        write_statistics=False,
    )
    return path.stat().st_size


def test_stored_bytes_are_those_of_a_file_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "public.parquet"
    images = np.random.default_rng(0).integers(0, 40, (50, 3, 6, 5)).astype(np.uint8)
    column = pa.array([image.tobytes() for image in images], type=pa.binary(90))
    assert stored_bytes(images) == parquet_size(path, column)
    # The file holds all there is to know, and nothing besides.
    table = pq.read_table(path)
    assert table.column_names == ["input"]
    assert b"".join(table["input"].to_pylist()) == images.tobytes()
    texts = ["first öne", "", "second"]
    assert stored_bytes(texts) == parquet_size(path, pa.array(texts))
    assert pq.read_table(path)["input"].to_pylist() == texts


def test_stored_bytes_follow_what_is_in_the_samples() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 1, 28, 28)).astype(np.uint8)
    assert 78_400 < stored_bytes(noise) < 78_400 + 1_000  # noise cannot be packed
    assert stored_bytes(np.zeros_like(noise)) < 1_000


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
def test_the_order_of_memory_does_not_change_stored_bytes(count: int, channels: int, side: int) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, channels, side, side)).astype(np.uint8)
    assert stored_bytes(np.asfortranarray(images)) == stored_bytes(images)


def test_the_tasks_own_data_under_another_split_name_are_no_public_set() -> None:
    public = {"name": "digits", "samples": 1797, "train": "x"}
    with pytest.raises(ExperimentError, match="but there are 0 samples that the task does not hold itself"):
        build_task(TaskConfig.model_validate({"name": "digits", "public": public}), 0)
