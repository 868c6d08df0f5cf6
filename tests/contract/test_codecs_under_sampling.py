"""Codecs of updates in real runs in which most clients are away in a round."""

from functools import lru_cache
from typing import Any

import pytest

from fedistill.communication.codecs.registry import CODECS
from helpers.runs import finished

ROUNDS = 10
SETTINGS: dict[str, dict[str, Any]] = {"top-k": {"share": 0.05}, "stc": {"share": 0.1}}
CASES: list[dict[str, Any]] = [
    {"name": name, **SETTINGS.get(name, {})} for name, kind in CODECS.items() if kind.relative
]
CASES += [{"name": "qsgd", "levels": 1}, {"name": "dadaquant", "last": 1}]


@pytest.mark.parametrize("codec", CASES, ids=str)
def test_a_run_with_a_quarter_of_the_clients_in_a_round_learns(codec: dict[str, Any]) -> None:
    """Near plain numbers, which get nine of ten digits right, far above chance, for far fewer bytes."""
    plain, coded = plain_numbers(), learned(codec)
    assert plain[0] > 0.85
    assert coded[0] >= plain[0] - 0.1
    assert coded[1] < 0.6 * plain[1]


@lru_cache
def plain_numbers() -> tuple[float, int]:
    return learned("fp32")


def learned(codec: Any) -> tuple[float, int]:
    """Accuracy of the server's model after the last round, and the bytes of all frames."""
    _, run = finished(
        {
            "rounds": ROUNDS,
            "evaluate": {"every": ROUNDS},
            "task": {"name": "digits", "clients": 12, "limit": 1200, "partition": {"kind": "iid"}},
            "models": {"clients": ["mlp-s"], "server": "mlp-s"},
            "train": {
                "epochs": 2,
                "batch_size": 16,
                "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
            },
            "sampling": {"fraction": 0.25},
            "runtime": {"kind": "serial"},
            "arms": [{"method": "fedavg", "codec": codec}],
        }
    )
    return run.records[-1].views["server@global"], run.ledger.total
