"""Suggestions for words that are not known: typos find their word, other words find nothing."""

import pytest

from fedistill.communication.codecs.registry import CODECS
from fedistill.errors import nearest
from fedistill.methods.registry import METHODS

KEYS = (
    "seed",
    "rounds",
    "task",
    "models",
    "train",
    "arms",
    "sampling",
    "runtime",
    "link",
    "batch_size",
    "lr",
)
TASKS = ("digits", "bbc-news", "mnist", "fashion-mnist")
MODELS = ("mlp-s", "cnn-s", "cnn-m", "resnet-8", "resnet-20", "bag", "textcnn", "transformer-s")


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("round", KEYS, "rounds"),
        ("batchsize", KEYS, "batch_size"),
        ("batch-size", KEYS, "batch_size"),
        ("samplign", KEYS, "sampling"),
        ("runtme", KEYS, "runtime"),
        ("lrr", KEYS, "lr"),
        ("Mnist", TASKS, "mnist"),
        ("mnits", TASKS, "mnist"),
        ("fashon-mnst", TASKS, "fashion-mnist"),
        ("bbc_news", TASKS, "bbc-news"),
        ("bbc", TASKS, "bbc-news"),
        ("resnet20", MODELS, "resnet-20"),
        ("restnet-8", MODELS, "resnet-8"),
        ("transfomer-s", MODELS, "transformer-s"),
        ("cnn", MODELS, "cnn-s"),
        ("FedAvg", METHODS, "fedavg"),
        ("fedagv", METHODS, "fedavg"),
        ("feavg", METHODS, "fedavg"),
        ("fp61", CODECS, "fp16"),
        ("server", ("client@own", "server@global"), "server@global"),
    ],
)
def test_a_typo_finds_its_word(typed: str, known: tuple[str, ...], meant: str) -> None:
    assert nearest(typed, known) == f" Did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("typed", "known"),
    [
        ("a", KEYS),
        ("ls", KEYS),
        ("", KEYS),
        ("16", CODECS),
        ("noise", KEYS),
        ("momentum", KEYS),
        ("learning_rate", KEYS),
        ("trial", KEYS),
        ("cifar10", TASKS),
        ("imagenet", TASKS),
        ("svhn", TASKS),
        ("vgg", MODELS),
        ("densenet", MODELS),
        ("bert", MODELS),
        ("lstm", MODELS),
        ("scaffold", METHODS),
        ("fednova", METHODS),
        ("feddyn", METHODS),
        ("fedsgd", METHODS),
        ("moon", METHODS),
        ("zip", CODECS),
        ("gzip", CODECS),
        ("int8", CODECS),
        ("federated", METHODS),
        ("word", ()),
    ],
)
def test_an_unrelated_or_very_short_word_finds_nothing(typed: str, known: tuple[str, ...]) -> None:
    assert nearest(typed, known) == ""
