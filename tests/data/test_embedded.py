"""The embedded tasks: all samples are there, once, and none is on two sides."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

from fedistill.data.samples import Samples
from fedistill.data.task import PublicSet, Task

Make = Callable[..., Task]


def contents(*parts: Samples) -> list[bytes]:
    samples: Iterable[Tensor | str] = chain.from_iterable(parts)
    return [one.encode() if isinstance(one, str) else one.numpy().tobytes() for one in samples]


def private(task: Task) -> list[bytes]:
    return contents(*(client.samples for client in task.clients))


def labelled(samples: Iterable[Samples], labels: Iterable[Tensor]) -> Counter[tuple[bytes, int]]:
    return Counter(zip(contents(*samples), torch.cat(list(labels)).tolist(), strict=True))


def test_digits_are_scikit_learns_each_image_once_with_its_label(make: Make) -> None:
    task = make(name="digits", clients=10, public=400, partition={"kind": "dirichlet", "alpha": 0.3})
    assert task.public is not None
    assert task.public_labels is not None
    assert task.signature.shape == (1, 8, 8)
    assert task.classes == tuple("0123456789")
    # A fifth of 1,797 is held out for testing.
    assert (len(task.test), len(task.public), sum(map(len, task.clients))) == (359, 400, 1038)
    data = load_digits()
    pixels = torch.from_numpy(np.round(data.images * 255 / 16).astype(np.uint8))
    parts = [*task.clients, task.test]
    assert labelled([pixels], [torch.from_numpy(data.target)]) == labelled(
        [*(part.samples for part in parts), task.public.samples],
        [*(part.labels for part in parts), task.public_labels],
    )


@pytest.fixture
def bytewise(tmp_path: Path) -> str:
    """A tokenizer of one's own, which needs no public set: its tokens are the bytes of a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["[PAD]", *letters])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.save(str(tmp_path / "bytes.json"))
    return str(tmp_path / "bytes.json")


def test_no_news_article_is_on_two_sides_though_many_come_twice(make: Make) -> None:
    task = make(name="bbc-news", clients=5, public=400)
    assert task.public is not None
    assert task.classes == ("business", "entertainment", "politics", "sports", "tech")
    test, public, own = contents(task.test.samples), contents(task.public.samples), private(task)
    assert not set(test) & set(public)
    assert not set(test) & set(own)
    assert not set(public) & set(own)
    assert len(public) == 400
    # The corpus does hold copies; they lie together, and those of public articles are left out.
    total = len(test) + len(public) + len(own)
    copies = total - len({*test, *public, *own})
    assert copies > 50
    assert 2225 - copies < total <= 2225
    # A fifth, and no more beyond it than one article's copies.
    assert 445 <= len(test) <= 450


def test_news_articles_that_nobody_made_public_are_all_dealt_out(make: Make, bytewise: str) -> None:
    task = make(name="bbc-news", text={"tokenizer": bytewise, "length": 16})
    assert sum(map(len, task.clients)) + len(task.test) == 2225
    assert task.class_counts().sum(0).add(torch.bincount(task.test.labels)).tolist() == [
        *(510, 386, 417, 511),
        401,
    ]


@pytest.mark.parametrize("name", ["digits", "bbc-news"])
def test_the_seed_alone_decides(make: Make, name: str) -> None:
    keys = {"name": name, "public": 100, "limit": 300, "partition": {"kind": "dirichlet", "alpha": 0.5}}
    first = make(seed=1, **keys)
    torch.manual_seed(99)
    np.random.seed(99)
    again = make(seed=1, **keys)
    other = make(seed=2, **keys)
    assert first.fingerprint() == again.fingerprint()
    assert contents(first.test.samples)[:50] != contents(other.test.samples)[:50]
    assert first.public is not None
    assert other.public is not None
    assert contents(first.public.samples) != contents(other.public.samples)


def test_what_is_public_has_no_labels(make: Make) -> None:
    task = make(name="bbc-news", public=100)
    assert task.public is not None
    assert [field.name for field in fields(PublicSet)] == ["samples", "bytes", "source"]
    assert isinstance(task.public.bytes, int)
    assert task.public.source == "held out from the training data"
    # The corpus is sorted by class; the public set is not, so that the place tells nothing.
    assert task.public_labels is not None
    changes = int((task.public_labels.diff() != 0).sum())
    # Of 99 neighbours 79 differ on average if classes are mixed, give or take four; 4 if they are sorted.
    assert changes > 60


def test_without_a_public_set_there_is_none(make: Make) -> None:
    task = make(name="digits")
    assert task.public is None
    assert task.public_labels is None


def test_a_limit_takes_private_samples_away_and_nothing_else(make: Make) -> None:
    whole = make(name="digits", public=100, clients=3)
    part = make(name="digits", public=100, clients=3, limit=200)
    assert sum(map(len, part.clients)) == 200
    assert set(private(part)) < set(private(whole))
    assert torch.equal(part.test.samples, whole.test.samples)
    assert part.public is not None
    assert whole.public is not None
    assert torch.equal(part.public.samples, whole.public.samples)
    beyond = make(name="digits", public=100, clients=3, limit=10**6)
    assert beyond.fingerprint() == whole.fingerprint()


def test_test_share_is_the_share_that_is_tested(make: Make) -> None:
    task = make(name="digits", test_share=0.5)
    assert len(task.test) == 898  # round(898.5), to even


@pytest.mark.parametrize("size", [1438, 10**6])
def test_a_public_set_that_leaves_nothing_is_refused(refused: Callable[..., str], size: int) -> None:
    assert refused(name="digits", public=size) == (
        f"task.public = {size}, but there are 1438 training samples: nothing would be left for the clients"
    )


def test_digits_can_be_scaled(make: Make) -> None:
    task = make(name="digits", public=10, image_size=[5, 6])
    assert task.signature.shape == (1, 5, 6)
    assert task.public is not None
    assert {part.samples.shape[1:] for part in (*task.clients, task.test, task.public)} == {(1, 5, 6)}
    # A mean over neighbours stays between the darkest and the brightest pixel, near the mean of all.
    whole = make(name="digits", public=10)
    assert task.test.samples.float().mean().item() == pytest.approx(
        whole.test.samples.float().mean().item(), rel=0.02
    )


def test_an_unknown_name_offers_the_nearest(refused: Callable[..., str]) -> None:
    assert refused(name="digts") == (
        "task.name = 'digts' is not one of digits, breast-cancer, bbc-news, mnist, fashion-mnist or"
        " hf:OWNER/NAME. Did you mean 'digits'?"
    )
    assert "task.public.name = 'bbc'" in refused(name="digits", public={"name": "bbc", "samples": 3})
