"""A task with validation: tested on training samples, whatever the test set is, which is never read."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedistill.config.task import TaskConfig
from fedistill.data import sources
from fedistill.data.build import build_task
from fedistill.data.task import Labelled, Task
from helpers.files import Files

LABELS = [0, 1] * 30
Build = Callable[..., Task]


@pytest.fixture
def build() -> Build:
    def build_it(validation: bool = True, **keys: object) -> Task:
        return build_task(TaskConfig.model_validate({"clients": 2} | keys), 0, validation=validation)

    return build_it


def contents(*parts: Labelled) -> set[bytes]:
    return {sample.numpy().tobytes() for part in parts for sample in part.samples}


def test_digits_are_never_tested_on_what_a_run_is_tested_on(build: Build) -> None:
    final = build(validation=False, name="digits", limit=300, public=100)
    tuned = build(name="digits", limit=300, public=100)
    # Enough samples lie beyond the limit: a fifth of the 1,797 less 360 for testing and 100 public ones.
    assert len(tuned.test) == pytest.approx(0.2 * (1797 - len(final.test) - 100), abs=1)
    assert not contents(tuned.test) & contents(final.test, *tuned.clients)
    for one, other in zip(tuned.clients, final.clients, strict=True):
        assert one.samples.equal(other.samples)
        assert one.labels.equal(other.labels)
    assert tuned.public is not None
    assert final.public is not None
    assert tuned.public.samples.equal(final.public.samples)
    assert not contents(tuned.test) & {sample.numpy().tobytes() for sample in tuned.public.samples}


def test_without_a_limit_private_samples_make_room(build: Build) -> None:
    final = build(validation=False, name="digits", public=100)
    tuned = build(name="digits", public=100)
    private = contents(*final.clients)
    assert contents(*tuned.clients) | contents(tuned.test) == private
    assert not contents(*tuned.clients) & contents(tuned.test)
    assert len(tuned.test) == pytest.approx(0.2 * sum(map(len, final.clients)), abs=1)


def test_what_lies_beyond_the_limit_goes_first_where_it_is_too_little(build: Build, files: Files) -> None:
    path = files.images("train.parquet", files.pixels(60), LABELS)
    final = build(validation=False, format="parquet", train=path, test=path, limit=56)
    tuned = build(format="parquet", train=path, test="absent.parquet", limit=56, test_share=0.1)
    beyond = contents(final.test) - contents(*final.clients)
    assert len(beyond) == 4
    assert beyond < contents(tuned.test)
    assert len(tuned.test) == 6
    assert sum(map(len, tuned.clients)) == 54


def test_copies_of_private_samples_do_not_validate(build: Build, files: Files) -> None:
    pixels = files.pixels(30)
    path = files.images("train.parquet", [*pixels, *pixels], LABELS[:30] * 2)
    tuned = build(format="parquet", train=path, test="absent.parquet", limit=40)
    assert len(tuned.test) >= 12
    assert not contents(tuned.test) & contents(*tuned.clients)


def test_test_files_are_not_read(build: Build, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.images("mnist-train.parquet", files.pixels(60), LABELS)
    (files.folder / "mnist-test.parquet").write_bytes(b"no parquet at all")
    monkeypatch.setenv("FEDISTILL_DATA", str(files.folder))
    for keys in (
        {"format": "parquet", "train": path, "test": "absent.parquet"},
        {"format": "parquet", "train": path, "test": str(files.folder / "mnist-test.parquet")},
        {"name": "mnist"},
    ):
        task = build(**keys)
        assert len(task.test) == 12
        assert sum(map(len, task.clients)) == 48


def test_a_test_split_inside_a_folder_is_not_read(build: Build, files: Files) -> None:
    pixels = files.pixels(60)
    folder = files.folder / "splits"
    folder.mkdir()
    files.images("splits/train.parquet", pixels, LABELS)
    (folder / "test.parquet").write_bytes(b"no parquet at all")
    task = build(format="parquet", train=str(folder))
    # All training samples are used: a source with a test split has nothing held out for it.
    assert contents(*task.clients, task.test) == {image.tobytes() for image in pixels}


def test_debians_test_images_are_not_read(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDISTILL_DATA", raising=False)
    folder = tmp_path / "debian"
    folder.mkdir()
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", folder)
    pixels = np.arange(20, dtype=np.uint8).repeat(28 * 28).tobytes()
    labels = bytes(number % 10 for number in range(20))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels))
    task = build(name="fashion-mnist")
    assert len(task.test) == 4
    assert sum(map(len, task.clients)) == 16
