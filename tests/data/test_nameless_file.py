"""Files without a name: what is written is read, nothing is left of it, and a full disk is told of."""

import os
import sys
from pathlib import Path

import pytest
import torch

from fedistill.data import nameless_file
from fedistill.data.nameless_file import NamelessFile, TensorStore
from fedistill.errors import RuntimeFailure

unlisted = pytest.mark.skipif(sys.platform == "win32", reason="Windows lists a file until it is deleted")


@unlisted
def test_no_folder_lists_it_and_its_content_is_there(tmp_path: Path) -> None:
    file = NamelessFile(tmp_path)
    file.write([b"some", memoryview(b"thing"), b""])
    assert bytes(file.mapped().numpy()) == b"something"
    assert list(tmp_path.iterdir()) == []


def test_between_the_pieces_are_zeros(tmp_path: Path) -> None:
    file = NamelessFile(tmp_path)
    file.write_at([(6, b"c"), (0, b"ab")])
    file.write_at([(2, b"x")])
    assert bytes(file.mapped(9).numpy()) == b"abx\0\0\0c\0\0"


def test_an_empty_file_has_no_content(tmp_path: Path) -> None:
    assert NamelessFile(tmp_path).mapped().shape == (0,)


def test_changes_to_the_content_stay_in_this_process(tmp_path: Path) -> None:
    file = NamelessFile(tmp_path)
    file.write([b"abc"])
    file.mapped()[1] = 0
    assert bytes(file.mapped().numpy()) == b"abc"


@pytest.mark.skipif(sys.platform == "win32", reason="a handle is a descriptor elsewhere alone")
def test_the_content_outlives_the_file_object(tmp_path: Path) -> None:
    file = NamelessFile(tmp_path)
    file.write([b"abc"])
    content = NamelessFile.received(os.dup(file.handle)).mapped()
    del file
    assert bytes(content.numpy()) == b"abc"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file may have no holes")
def test_more_than_the_memory_of_the_machine_can_be_mapped(tmp_path: Path) -> None:
    """Zeros that nobody has written take no room on a disk."""
    size = 4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert NamelessFile(tmp_path).mapped(size)[-1] == 0


@unlisted
def test_a_folder_that_is_not_there_yet_stands_for_the_nearest_above_it(tmp_path: Path) -> None:
    file = NamelessFile(tmp_path / "runs" / "first")
    file.write([b"abc"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_disk_that_takes_nothing_is_named(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        file = NamelessFile.received(os.dup(full.fileno()))
        with pytest.raises(RuntimeFailure, match="No space left on device"):
            file.write([b"abc"])


def test_a_store_returns_what_was_put_into_it_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nameless_file, "_IN_MEMORY", 100)
    store, given = TensorStore(tmp_path), {}
    for number in range(40):
        given[number] = torch.arange(number * 3, dtype=torch.int32).reshape(-1, 3) * number
        store.put(number, given[number].clone())
        assert number in store
        assert number + 1 not in store
    assert all(torch.equal(store[number], value) for number, value in given.items())
