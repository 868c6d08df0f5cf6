"""Data sets by name without a network: a folder of the user's, Debian's package, or a message."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedistill.data import sources
from fedistill.data.task import Task
from helpers.files import Files

Make = Callable[..., Task]
Refused = Callable[..., str]

LABELS = [0, 1] * 6


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEDISTILL_DATA", raising=False)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "not-installed")


def debian(folder: Path, train: int, test: int) -> None:
    """The files of the package with so many images each; image n is even, of brightness n."""
    folder.mkdir()
    for prefix, count in (("train", train), ("t10k", test)):
        pixels = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28).tobytes()
        labels = bytes(number % 10 for number in range(count))
        images = struct.pack(">IIII", 0x803, count, 28, 28) + pixels
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        named = struct.pack(">II", 0x801, count) + labels
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(named))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_folder_of_the_users_comes_first(
    make: Make, files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("FEDISTILL_DATA", str(files.folder))
    debian(tmp_path / "debian", 20, 5)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    files.images(f"{name}-train.parquet", files.pixels(12), LABELS)
    test = files.pixels(3, seed=7)
    files.images(f"{name}-test.parquet", test, [1, 0, 0])
    task = make(name=name)
    assert task.name == name
    assert task.classes == ("0", "1")
    assert task.test.samples.numpy().tobytes() == np.stack(test).tobytes()
    assert task.test.labels.tolist() == [1, 0, 0]
    assert sum(map(len, task.clients)) == 12


def test_columns_may_be_named_there_too(make: Make, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDISTILL_DATA", str(files.folder))
    for part in ("train", "test"):
        files.images(f"mnist-{part}.parquet", files.pixels(12), LABELS, writer=["x", "y", "z"] * 4)
    assert make(name="mnist", label="writer").classes == ("x", "y", "z")


def test_half_of_a_data_set_is_not_taken_for_all(
    refused: Refused, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDISTILL_DATA", str(files.folder))
    files.images("mnist-train.parquet", files.pixels(12), LABELS)
    assert "put mnist-train.parquet and mnist-test.parquet" in refused(name="mnist")


def test_debians_fashion_mnist(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    debian(tmp_path / "debian", 20, 5)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    task = make(name="fashion-mnist")
    assert task.signature.shape == (1, 28, 28)
    assert task.classes[1] == "Trouser"
    assert task.classes[9] == "Ankle boot"
    assert [int(image.unique()) for image in task.test.samples] == [0, 1, 2, 3, 4]
    assert task.test.labels.tolist() == [0, 1, 2, 3, 4]
    private = {
        (int(image.unique()), int(label))
        for client in task.clients
        for image, label in zip(client.samples, client.labels, strict=True)
    }
    assert private == {(number, number % 10) for number in range(20)}
    scaled = make(name="fashion-mnist", image_size=[7, 9])
    assert scaled.test.samples.shape == (5, 1, 7, 9)
    assert [int(image.unique()) for image in scaled.test.samples] == [0, 1, 2, 3, 4]


def test_without_a_network_one_message_says_what_to_do(refused: Refused) -> None:
    said = refused(name="hf:owner/name")
    assert "\n" not in said
    assert said.startswith("data set hf:owner/name is not on this machine and could not be fetched (")
    assert said.endswith("; download it once while online, or use local files with task.format")
    files = "and set FEDISTILL_DATA to it"
    mnist = refused(name="mnist")
    assert mnist.startswith("data set hf:ylecun/mnist is not on this machine and could not be fetched (")
    assert mnist.endswith(
        f"; put mnist-train.parquet and mnist-test.parquet (columns image, label) into a folder {files}"
    )
    fashion = refused(name="fashion-mnist")
    assert fashion.endswith(f"{files}, or install Debian's package dataset-fashion-mnist")


@pytest.mark.parametrize("name", ["hf:", "hf:a b", "hf:a/b/c", "hf:/b"])
def test_a_name_that_no_hub_has_is_refused_at_once(refused: Refused, name: str) -> None:
    assert refused(name=name) == f"task.name = {name!r}: write hf:OWNER/NAME, or hf:OWNER/NAME@REVISION"
