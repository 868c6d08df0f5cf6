"""Secure sums on a network: a site keeps its secrets until the round ends, and may fall silent."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from fedistill.communication.kinds import Kind
from fedistill.communication.protocol import frame as frames
from fedistill.config.schema import Experiment
from fedistill.experiment.run_folder import RunFolder
from helpers.flower_trial import experiment, site_file

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Flower uses what its libraries will drop
    from fedistill.flower.serde import Order
    from helpers.flower_desk import Desk, play

pytestmark = pytest.mark.usefixtures("app")

TASK = {"name": "digits", "clients": 4, "limit": 120, "public": 30}


def asked_for(method: str) -> Experiment:
    return experiment(rounds=1, task=TASK, arms=[{"method": method, "secure_sums": {"threshold": 0.7}}])


def kinds_sent(desk: Desk, node: int) -> list[int]:
    return [
        frames.decode(order.frame).kind
        for at, _, order in desk.taken
        if at == node and order.frame[:2] == b"fd"
    ]


def test_secrets_are_drawn_at_the_site_and_are_gone_after_the_last_turn(tmp_path: Path) -> None:
    """A site that falls silent before it has added anything is left out, and still has its secrets."""
    asked = asked_for("voting")
    asked = asked.model_copy(update={"flower": asked.flower.model_copy(update={"deadline": 3.0})})
    keys: list[bytes] = []

    for name in ("first", "second"):
        desk = Desk(asked, tmp_path / name)

        def silenced(node: int, order: Order, reply: Any, desk: Desk = desk) -> Any:
            if order.frame and frames.decode(order.frame).kind == Kind.SECURE_KEYS:
                if node == 10:
                    keys.append(frames.decode(order.frame).sections[1])
                desk.silent |= {13} if node == 13 else set()
            return reply

        desk.change = silenced
        play(
            desk,
            asked.model_copy(update={"flower": asked.flower.model_copy(update={"deadline": 3.0})}),
            tmp_path / name / "run",
        )
        (record,) = RunFolder(tmp_path / name / "run").records("voting")
        assert record.missing == {"3": "no reply within 3 s"}
        assert kinds_sent(desk, 10) == [Kind.SECURE_KEYS, Kind.SECURE_SHARES, Kind.SECURE_UNMASKING]
        held = {path.parts[-4] for path in (tmp_path / name).rglob("secure-sum")}
        assert held == {"node-3"}
        (pending,) = (tmp_path / name).rglob("secure-sum")
        assert pending.stat().st_mode & 0o077 == 0 or pending.parent.parent.stat().st_mode & 0o077 == 0
    assert keys[0] != keys[1], "the same seed, and other secrets"


def test_a_site_with_its_own_data_adds_votes_and_nothing_that_its_samples_bound(tmp_path: Path) -> None:
    labels = [str(number) for number in range(10)] * 2
    for method, missing in (("voting", {}), ("gaussian", {"1": "bounded by how many samples each site has"})):
        place = tmp_path / method
        place.mkdir()
        site_file(place / "mine.parquet", labels)
        configs: list[dict[str, Any]] = [{"partition-id": number} for number in range(4)]
        configs[1]["train"] = str(place / "mine.parquet")
        asked = asked_for(method)
        play(Desk(asked, place, configs), asked, place / "run")
        (record,) = RunFolder(place / "run").records(method)
        assert record.missing.keys() == missing.keys()
        assert all(part in record.missing[client] for client, part in missing.items())
        assert "secure-unmasking" in {entry.kind for entry in record.traffic}
