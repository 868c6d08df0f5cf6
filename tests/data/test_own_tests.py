"""What clients hold out of their own samples: drawn by the seed, disjoint, and never trained on."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from fedistill.config.task import Source, TaskConfig
from fedistill.data.build import build_at_site, build_task
from fedistill.data.own_tests import hold_out, hold_out_own
from fedistill.data.samples import Samples, Texts
from fedistill.data.task import Task
from helpers.files import Files

DIGITS = {"name": "digits", "clients": 4, "limit": 240, "public": 60}


def build(seed: int = 0, *, validation: bool = False, **keys: Any) -> Task:
    return build_task(TaskConfig.model_validate(keys), seed, validation=validation)


def rows(samples: Samples) -> list[bytes]:
    """The content of each sample."""
    if isinstance(samples, Texts):
        return [text.encode() for text in samples]
    return [one.numpy().tobytes() for one in samples]


@given(st.data())
def test_no_more_than_the_share_is_held_out_and_copies_stay_together(data: st.DataObject) -> None:
    """Keys of one letter, so that copies within a client and between clients are common."""
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    keys = np.array(
        data.draw(
            st.lists(
                st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f"]),
                min_size=sum(sizes),
                max_size=sum(sizes),
            )
        )
    )
    share = data.draw(st.floats(0, 0.99))
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    left, held = hold_out_own(parts, keys, share, seed=3)
    for client, part in enumerate(parts):
        assert sorted([*left[client], *held[client]]) == part.tolist()
        assert len(held[client]) <= round(share * len(part))
        assert len(left[client]) >= 1
    trained = {keys[row] for part in left for row in part}
    assert not trained & {keys[row] for part in held for row in part}


def test_all_that_may_be_held_out_is() -> None:
    part, keys = np.arange(10), np.array([b"%d" % row for row in range(10)])
    left, held = hold_out(part, keys, 0.3, np.random.default_rng(0))
    assert (len(left), len(held)) == (7, 3)
    for share, size, kept in ((0.2, 2, 2), (0.2, 3, 2), (0.9, 2, 1), (0.9, 1, 1)):
        assert len(hold_out(part[:size], keys[:size], share, np.random.default_rng(0))[0]) == kept
    # Of ten copies, one cannot be held out without the others.
    assert not len(hold_out(part, np.array([b"x"] * 10), 0.3, np.random.default_rng(0))[1])


def test_a_clients_part_depends_on_its_own_samples_alone() -> None:
    keys = np.array([b"%d" % row for row in range(30)])
    parts = [np.arange(10), np.arange(10, 20)]
    _, held = hold_out_own(parts, keys, 0.3, seed=1)
    _, others = hold_out_own([parts[0], np.arange(20, 30)], keys, 0.3, seed=1)
    assert held[0].tolist() == others[0].tolist()
    assert held[0].tolist() != hold_out_own(parts, keys, 0.3, seed=2)[1][0].tolist()


@pytest.mark.parametrize("partition", ["iid", "quantity(alpha=0.5)"])
def test_held_out_samples_are_nobodys_training_or_public_samples(partition: str) -> None:
    whole = build(**DIGITS, partition=partition)
    task = build(**DIGITS, partition=partition, own_test_share=0.25)
    assert not whole.own_tests
    for before, left, held in zip(whole.clients, task.clients, task.own_tests, strict=True):
        assert sorted(rows(left.samples) + rows(held.samples)) == sorted(rows(before.samples))
        assert len(held) == round(0.25 * len(before))
        assert sorted([*left.labels.tolist(), *held.labels.tolist()]) == sorted(before.labels.tolist())
    held_out = {row for held in task.own_tests for row in rows(held.samples)}
    assert task.public is not None
    used = [row for data in task.clients for row in rows(data.samples)]
    assert held_out.isdisjoint([*used, *rows(task.public.samples), *rows(task.test.samples)])
    # Nothing else has changed.
    assert torch.equal(whole.test.labels, task.test.labels)
    assert rows(whole.test.samples) == rows(task.test.samples)


def test_a_saved_task_has_them_and_its_fingerprint_sees_them() -> None:
    task, without = build(**DIGITS, own_test_share=0.25), build(**DIGITS)
    again = Task.in_file(task.file(), None)
    for one, other in zip(task.own_tests, again.own_tests, strict=True):
        assert rows(one.samples) == rows(other.samples)
        assert torch.equal(one.labels, other.labels)
    assert again.fingerprint() == task.fingerprint() != without.fingerprint()
    assert Task.in_file(without.file(), None).own_tests == ()


def test_tuning_sees_none_of_them() -> None:
    """On validation data, a client's own part is another one, of what is left for training."""
    task = build(**DIGITS, own_test_share=0.25)
    tuned = build(**DIGITS, own_test_share=0.25, validation=True)
    secret = {row for held in task.own_tests for row in rows(held.samples)}
    for trained, held, own in zip(tuned.clients, tuned.own_tests, task.clients, strict=True):
        assert len(held)
        assert secret.isdisjoint(rows(trained.samples) + rows(held.samples))
        assert sorted(rows(trained.samples) + rows(held.samples)) == sorted(rows(own.samples))


@pytest.fixture
def hospitals(files: Files) -> dict[str, Any]:
    """Site north has 10 texts, south has 5, west has 2: too few for a fifth of them to be one."""
    sites = ["north"] * 10 + ["south"] * 5 + ["west"] * 2
    texts = [f"text {place}" for place in range(17)]
    train = files.csv("train.csv", text=texts, label=["a", "b"] * 8 + ["a"], site=sites)
    test = files.csv("test.csv", text=["t1", "t2"], label=["a", "b"])
    tokenizer = files.folder / "tokenizer.json"
    Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tokenizer))
    return {
        "format": "csv",
        "train": train,
        "test": test,
        "partition": {"kind": "natural", "column": "site"},
        "text": {"tokenizer": str(tokenizer)},
    }


def test_natural_sites_hold_out_unless_they_are_told_not_to(hospitals: dict[str, Any]) -> None:
    task = build(**hospitals)
    assert task.client_names == ("north", "south", "west")
    assert list(map(len, task.own_tests)) == [2, 1, 0]
    assert task.samples() == (8, 4, 2)
    assert list(map(len, build(**hospitals, test_share=0.5).own_tests)) == [5, 2, 1]
    assert build(**hospitals, own_test_share=0).own_tests == ()
    again = Task.in_file(task.file(), None)
    assert [list(data.samples) for data in again.own_tests] == [list(data.samples) for data in task.own_tests]


def test_a_site_with_its_own_file_holds_out_a_part_of_that(hospitals: dict[str, Any], files: Files) -> None:
    texts = [f"own {place}" for place in range(20)]
    path = files.csv("mine.csv", text=texts, label=["b", "a"] * 10)
    config = TaskConfig.model_validate(hospitals)
    task, private, held = build_at_site(config, 0, Source(format="csv", train=path), client=1)
    assert held is not None
    assert (len(private), len(held)) == (16, 4)
    assert sorted([*private.samples, *held.samples]) == sorted(texts)
    where = [texts.index(text) for text in held.samples]
    assert held.labels.tolist() == [task.classes.index("ba"[place % 2]) for place in where]
    none = config.model_copy(update={"own_test_share": 0.0})
    assert build_at_site(none, 0, Source(format="csv", train=path), client=1)[2] is None
