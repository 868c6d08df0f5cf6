"""A task as data: saved and read again it is the same, and its fingerprint sees every part."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedistill.data.samples import Samples, Texts
from fedistill.data.task import Labelled, PublicSet, Task
from fedistill.models.signature import Signature
from helpers.files import Files

Make = Callable[..., Task]


@pytest.fixture
def small() -> Task:
    def part(*labels: int) -> Labelled:
        inputs = torch.arange(len(labels) * 4, dtype=torch.uint8).reshape(-1, 1, 2, 2)
        return Labelled(inputs, torch.tensor(labels))

    return Task(
        name="small",
        signature=Signature("image", (1, 2, 2), 3, 0),
        classes=("a", "b", "c"),
        clients=(part(0, 0, 2), part(1)),
        test=part(0, 1, 2),
        public=PublicSet(part(0, 1).samples, 77, "somewhere"),
        public_labels=torch.tensor([2, 1]),
        partition="by hand",
        vocabulary_frame=b"\x00frame",
    )


def test_classes_are_counted_for_each_client(small: Task) -> None:
    assert small.class_counts().tolist() == [[2, 0, 1], [0, 1, 0]]


def alike(first: Samples, second: Samples) -> bool:
    if isinstance(first, Texts) or isinstance(second, Texts):
        return isinstance(first, Texts) and isinstance(second, Texts) and list(first) == list(second)
    return first.equal(second) and first.dtype == second.dtype


def same(first: Task, second: Task) -> bool:
    """Compares field by field, without the bytes that `save` and `fingerprint` share."""
    plain = ("name", "signature", "classes", "partition", "vocabulary_frame")
    parts = [(*task.clients, task.test) for task in (first, second)]
    return (
        all(getattr(first, field) == getattr(second, field) for field in plain)
        and len(parts[0]) == len(parts[1])
        and all(alike(a.samples, b.samples) and a.labels.equal(b.labels) for a, b in zip(*parts, strict=True))
        and (first.public is None) == (second.public is None)
        and (
            first.public is None
            or second.public is None
            or (
                alike(first.public.samples, second.public.samples)
                and (first.public.bytes, first.public.source) == (second.public.bytes, second.public.source)
            )
        )
        and (first.public_labels is None) == (second.public_labels is None)
        and (
            first.public_labels is None
            or second.public_labels is None
            or first.public_labels.equal(second.public_labels)
        )
    )


def test_a_saved_task_is_read_as_it_was(small: Task, make: Make, files: Files, tmp_path: Path) -> None:
    texts = files.csv("t.csv", text=[f"word{n}" for n in range(20)], label=[0, 1] * 10)
    tasks = [
        small,
        replace(small, public=None, public_labels=None),
        make(name="digits", public=20, limit=50),
        make(format="csv", train=texts, public=5),
    ]
    for number, task in enumerate(tasks):
        task.save(tmp_path / f"{number}.task")
        again = Task.open(tmp_path / f"{number}.task")
        assert same(task, again)
        assert again.fingerprint() == task.fingerprint()


def test_the_fingerprint_changes_with_every_part(small: Task) -> None:
    first, second = small.clients
    changed = torch.ones_like(small.test.samples)
    assert small.public is not None
    others = [
        replace(small, name="other"),
        replace(small, classes=("a", "b", "d")),
        replace(small, clients=(second, first)),
        # The same samples, dealt out otherwise.
        replace(
            small,
            clients=(
                Labelled(first.samples[:2], first.labels[:2]),
                Labelled(
                    torch.cat([first.samples[2:], second.samples]),
                    torch.cat([first.labels[2:], second.labels]),
                ),
            ),
        ),
        replace(small, clients=(Labelled(first.samples, first.labels.flip(0)), second)),
        replace(small, test=Labelled(changed, small.test.labels)),
        replace(small, test=Labelled(small.test.samples, small.test.labels.flip(0))),
        replace(small, public=None),
        replace(small, public=replace(small.public, samples=small.public.samples.flip(0))),
        replace(small, public=replace(small.public, bytes=78)),
        replace(small, public_labels=None),
        replace(small, partition="otherwise"),
        replace(small, vocabulary_frame=b""),
        replace(small, signature=replace(small.signature, vocabulary=9)),
    ]
    prints = [task.fingerprint() for task in (small, *others)]
    assert len(set(prints)) == len(prints)
