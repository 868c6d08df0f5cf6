"""Secure sums on a network: a site keeps its secrets until the round ends, and may fall silent."""

import stat
import warnings
from pathlib import Path
from typing import Any

import pytest

from fedistill.communication.kinds import SECURE_TURNS, Kind
from fedistill.communication.protocol import frame as frames
from fedistill.config.schema import Experiment
from fedistill.experiment.run_folder import RunFolder
from helpers.flower_trial import experiment, site_file

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Flower uses what its libraries will drop
    from fedistill.flower.serde import Order
    from helpers.flower_desk import Desk, frame_of, play

pytestmark = pytest.mark.usefixtures("app")

TASK = {"name": "digits", "clients": 4, "limit": 120, "public": 30}


def asked_for(method: str) -> Experiment:
    return experiment(rounds=1, task=TASK, arms=[{"method": method, "secure_sums": {"threshold": 0.7}}])


def kind_of(order: Order) -> int:
    """The kind of an order's frame, or 0 if it is not one."""
    return frames.decode(frame_of(order)).kind if frame_of(order).startswith(b"fd") else 0


def test_secrets_are_drawn_at_the_site_and_are_gone_after_the_last_turn(tmp_path: Path) -> None:
    """A site that falls silent before it has added anything is left out, and still has its secrets."""
    asked = asked_for("voting")
    asked = asked.model_copy(update={"flower": asked.flower.model_copy(update={"deadline": 3.0})})
    keys: list[bytes] = []

    for name in ("first", "second"):
        desk = Desk(asked, tmp_path / name)

        def silenced(node: int, order: Order, reply: Any, desk: Desk = desk) -> Any:
            if kind_of(order) == Kind.SECURE_KEYS and node == 10:
                keys.append(frames.decode(frame_of(order)).sections[1])
            if kind_of(order) == Kind.SECURE_KEYS and node == 13:
                desk.silent.add(13)
            return reply

        desk.change = silenced
        play(desk, asked, tmp_path / name / "run")
        (record,) = RunFolder(tmp_path / name / "run").records("voting")
        assert record.missing == {"3": "no reply within 3 s"}
        sent = [kind_of(order) for node, _, order in desk.taken if node == 10]
        assert [kind for kind in sent if kind] == [*SECURE_TURNS]
        (held,) = (tmp_path / name).rglob("secure-sum")
        assert held.parents[1].name == "client-3"
        assert stat.S_IMODE(held.parents[2].stat().st_mode) == 0o700
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
