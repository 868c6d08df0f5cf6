"""Texts as plain data: what goes in comes out, byte for byte, also where there is little or nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedistill.data.samples import Texts, none_of
from fedistill.data.task import Labelled, PublicSet, Task
from fedistill.models.signature import Signature

ODD = ["", "naïve", "", "日本語 🙂", "a\nb\x00c", ""]
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=6)


@given(texts)
def test_texts_are_read_as_they_were(given: list[str]) -> None:
    kept = Texts.of(given)
    assert list(kept) == given
    assert len(kept) == len(given)


def test_texts_are_their_utf_8_and_where_each_ends() -> None:
    kept = Texts.of(["é", "", "ab"])
    assert (kept.content.dtype, kept.content.tolist()) == (torch.uint8, [0xC3, 0xA9, ord("a"), ord("b")])
    assert (kept.ends.dtype, kept.ends.tolist()) == (torch.int64, [2, 2, 4])
    assert kept.nbytes == 4 + 3 * 8


@pytest.mark.parametrize("given", [[], ["", ""]])
def test_texts_without_content(given: list[str]) -> None:
    kept = Texts.of(given)
    assert list(kept) == given
    assert len(kept.content) == 0


def test_none_of_a_kind() -> None:
    images = none_of(torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
    assert isinstance(images, torch.Tensor)
    assert (images.shape, images.dtype) == ((0, 1, 2, 2), torch.uint8)
    assert list(none_of(Texts.of(ODD))) == []
    assert isinstance(none_of(Texts.of(ODD)), Texts)


def text_task(*clients: list[str], test: list[str], public: list[str] | None) -> Task:
    def part(given: list[str]) -> Labelled:
        return Labelled(Texts.of(given), torch.arange(len(given)) % 2)

    return Task(
        name="small",
        signature=Signature("text", (4,), 2, 9),
        classes=("a", "b"),
        clients=tuple(map(part, clients)),
        test=part(test),
        public=None if public is None else PublicSet(Texts.of(public), 7, "somewhere"),
        public_labels=None,
        partition="by hand",
        vocabulary_frame=b"frame",
    )


def contents(task: Task) -> list[list[str]]:
    parts = [*task.clients, task.test, *([task.public] if task.public is not None else [])]
    return [[one for one in part.samples if isinstance(one, str)] for part in parts]


@given(st.lists(texts, min_size=1, max_size=4), texts, st.none() | texts)
def test_a_saved_text_task_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    clients: list[list[str]],
    test: list[str],
    public: list[str] | None,
) -> None:
    """Clients without samples or without a letter among them too."""
    path = tmp_path_factory.getbasetemp() / "texts.task"
    task = text_task(*clients, test=test, public=public)
    task.save(path)
    again = Task.open(path)
    assert contents(again) == [*clients, test, *([public] if public is not None else [])]
    assert again.fingerprint() == task.fingerprint()


def test_a_client_that_was_cut_out_of_a_saved_task_is_as_one_of_its_own(tmp_path: Path) -> None:
    """What lies before its first letter belongs to others; saved once more, it must not count."""
    whole = text_task(["before", "it"], ODD, ["after"], test=["x"], public=None)
    whole.save(tmp_path / "whole.task")
    again = Task.open(tmp_path / "whole.task")
    alone = text_task(ODD, test=["x"], public=None)
    assert replace(again, clients=again.clients[1:2]).fingerprint() == alone.fingerprint()


def test_the_fingerprint_tells_texts_apart() -> None:
    """The same letters, with another text's end or another client's share."""
    tasks = [
        text_task(["ab", "c"], ["d"], test=["x"], public=["y"]),
        text_task(["a", "bc"], ["d"], test=["x"], public=["y"]),
        text_task(["ab", "c", "d"], [], test=["x"], public=["y"]),
        text_task(["ab"], ["c", "d"], test=["x"], public=["y"]),
        text_task(["ab", "c"], ["d"], test=["y"], public=["x"]),
        text_task(["ab", "c"], ["d"], test=["x"], public=None),
        text_task(["ab", "c"], ["D"], test=["x"], public=["y"]),
    ]
    assert len({task.fingerprint() for task in tasks}) == len(tasks)
    same = text_task(["ab", "c"], ["d"], test=["x"], public=["y"])
    assert same.fingerprint() == tasks[0].fingerprint()
