from typing import Any

import pytest
from sklearn.datasets import load_digits

from fedistill.experiment.advice import examine_and_advise
from fedistill.experiment.preflight import examine
from helpers.runs import ready

STATISTICS = "no arm sends statistics once"
BRIDGE = "bridge is often the cheapest way"


def advice(arm: dict[str, Any], **changes: Any) -> list[str]:
    """What is said besides the findings of a run."""
    experiment, one = ready(
        {
            "rounds": 2,
            "task": {"name": "digits", "clients": 3, "limit": 120, "public": 40} | changes.pop("task", {}),
            "models": {"clients": ["cnn-s"], "server": "cnn-s"},
            "arms": [arm],
            **changes,
        }
    )
    found = examine_and_advise(experiment, one.task, [one])
    before = examine(experiment, one.task, [one])
    assert found[: len(before)] == before
    return [str(finding) for finding in found[len(before) :]]


def test_missing_rivals_are_named_with_what_they_cost() -> None:
    statistics, bridge = advice({"method": "dsfl"})
    assert STATISTICS in statistics
    assert "gaussian would cost about" in statistics
    assert 'method = "gaussian"' in statistics
    assert BRIDGE in bridge
    assert 'method = "bridge"' in bridge


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"method": "ridge"}, []),
        ({"method": "bridge"}, [STATISTICS]),
        ({"method": "local"}, [STATISTICS]),
    ],
)
def test_what_is_there_is_not_advised(arm: dict[str, Any], said: list[str]) -> None:
    assert [any(part in text for text in advice(arm)) for part in said] == [True] * len(said)
    assert len(advice(arm)) == len(said)


def test_under_strong_skew_bridge_should_begin_with_statistics() -> None:
    skewed = {"partition": {"kind": "pathological", "classes_per_client": 2}, "clients": 5, "limit": 400}
    _, bridge = advice({"method": "dsfl"}, task=skewed)
    assert 'method = "bridge", start = "gaussian(width=32)" and' in bridge
    warning, _ = advice({"method": "bridge"}, task=skewed)
    assert "so their votes alone say little" in warning
    assert 'give this arm start = "gaussian(width=32)"' in warning
    assert len(advice({"method": "bridge", "start": "gaussian(width=32)"}, task=skewed)) == 1


def named_at_once(clients: list[list[int]], **settings: Any) -> list[str]:
    partition = {"kind": "indices", "clients": clients}
    task = {"partition": partition, "clients": None, "limit": None}
    return [text for text in advice({"method": "bridge", **settings}, task=task) if "at once" in text]


def test_classes_with_few_voters_at_once_are_named() -> None:
    labels = load_digits().target
    places = [(labels == digit).nonzero()[0].tolist() for digit in range(10)]
    zeros, ones, twos = places[:3]
    # Of 162 samples, 2 clients and 10 classes the mean is 8.
    rare = [[*zeros[:40], *ones[:40], twos[0]], [*zeros[40:80], *ones[40:80], twos[1]]]
    (found,) = named_at_once(rare, levels_first=False)
    assert "to vote for it at once hold less than 60% of these classes: '2'" in found
    assert "take levels_first out of this arm" in found
    assert not named_at_once(rare)
    # One client has 40 samples of each class, and five have 8: the mean is 13.
    parts = [(0, 40), *((first, first + 8) for first in range(40, 80, 8))]
    large = [[row for digit in places for row in digit[slice(*part)]] for part in parts]
    (found,) = named_at_once(large, levels_first=False)
    assert "'0', '1', '2', '3', '4', '5', '6', '7', '8', '9'" in found
    # Who has one class alone votes in neither way.
    alone = [[*zeros[:40], *ones[:40]], [*zeros[40:80], *ones[40:80]], twos[:90]]
    assert not named_at_once(alone, levels_first=False)


def test_weights_are_compared_with_a_part_of_them_where_bridge_cannot_run() -> None:
    _, masked = advice({"method": "fedavg"}, task={"public": 0})
    assert "random-mask, which trains and sends a small part of the weights, would cost about" in masked
    assert 'method = "random-mask"' in masked
    assert len(advice({"method": "random-mask"}, task={"public": 0})) == 1
    # Neither runs with models that have buffers, or that differ.
    unlike = {"clients": ["cnn-s", "mlp-s"], "server": "cnn-m"}
    assert len(advice({"method": "fml"}, task={"public": 0}, models=unlike)) == 1


def test_texts_are_compared_with_naive_bayes() -> None:
    statistics, *_ = advice(
        {"method": "dsfl"},
        task={"name": "bbc-news", "limit": 60, "text": {"length": 16, "vocabulary": 200}},
        models={"clients": ["bag"], "server": "bag"},
    )
    assert "naive-bayes would cost about" in statistics


def test_what_is_sent_once_is_not_counted_in_every_round() -> None:
    experiment, one = ready(
        {
            "rounds": 9,
            "task": {"name": "digits", "clients": 3, "limit": 120},
            "models": {"clients": ["cnn-s"], "server": "cnn-s"},
            "arms": [{"method": "gaussian"}],
        }
    )
    (said,) = [str(one) for one in examine(experiment, one.task, [one]) if "gaussian" in one.where]
    assert said.endswith("down, once")


def test_nothing_is_advised_beside_an_error() -> None:
    assert advice({"method": "dsfl"}, task={"public": 0}) == []
