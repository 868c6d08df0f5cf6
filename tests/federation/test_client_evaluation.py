"""Clients' models may be evaluated less often than the server's."""

from typing import Any

import pytest

from helpers.runs import finished

RAW: dict[str, Any] = {
    "rounds": 5,
    "task": {"name": "digits", "clients": 3, "limit": 90, "public": 30},
    "models": {"clients": ["mlp-s"], "server": "mlp-s"},
    "train": {"batch_size": 16},
    "runtime": {"kind": "serial"},
    "arms": [{"method": "voting"}],
}
ALL, SERVER, NONE = {"server@global", "client@global", "client@own"}, {"server@global"}, set[str]()


@pytest.mark.parametrize(
    ("evaluate", "viewed"),
    [
        ({}, [ALL] * 5),
        ({"clients": 2}, [SERVER, ALL, SERVER, ALL, ALL]),
        ({"clients": 9}, [SERVER, SERVER, SERVER, SERVER, ALL]),
        ({"every": 2, "clients": 4}, [NONE, SERVER, NONE, ALL, ALL]),
    ],
)
def test_rounds_with_views_of_clients(evaluate: dict[str, int], viewed: list[set[str]]) -> None:
    _, run = finished({**RAW, "evaluate": evaluate})
    assert [set(record.views) for record in run.records] == viewed
    _, whole = finished(RAW)
    for record, other in zip(run.records, whole.records, strict=True):
        assert record.views.items() <= other.views.items()


def test_clients_that_stay_away_keep_their_accuracy() -> None:
    """What is known of a model counts until it has changed, also over rounds that evaluate no client."""
    sampling = {"fraction": 0.4}
    _, run = finished({**RAW, "evaluate": {"clients": 3}, "sampling": sampling})
    _, whole = finished({**RAW, "sampling": sampling})
    assert run.records[-1].views == whole.records[-1].views
