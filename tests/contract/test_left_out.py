"""Every method goes on without a client whose reply is refused, as if that reply had been lost."""

from dataclasses import replace
from typing import Any

import pytest

from fedistill.communication.protocol.shared_state import dump_states
from fedistill.config.schema import Sampling
from fedistill.federation import round as round_module
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import SerialExecutor
from fedistill.methods.registry import METHODS
from fedistill.state import encode_state, to_plain
from fedistill.testing.methods import MethodCase
from fedistill.testing.runs import finish, require_one_memory
from helpers.bad_replies import Change, Changing, damaged, only
from helpers.method_rows import FAMILIES, Row, each


def played(row: Row, change: Change) -> tuple[ReadyArm, ArmRun]:
    wanted, arm = MethodCase(row.method, row.models, row.settings).ready()
    with Changing(SerialExecutor(wanted, arm.task), change) as executor:
        return arm, finish(arm, executor)


@each(everyday=FAMILIES)
def test_a_reply_that_is_refused_is_as_good_as_lost(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = 1 if METHODS[row.method].one_shot else 2
    arm, run = played(row, only([bad], [1, 3], damaged_if_any))
    missing = ["1", "3"] if arm.method.uplink is not None else []
    assert [list(record.missing) for record in run.records] == [
        missing if at == bad else [] for at in (1, 2, 3)
    ]
    require_one_memory(run, arm)

    def lost(settings: Sampling, clients: list[int], seed: int, round: int) -> list[int]:
        return [client for client in clients if client in (1, 3) and round == bad]

    monkeypatch.setattr(round_module, "sample_dropouts", lost)
    _, expected = played(row, lambda round, client, reply: reply)
    assert parts(run) == parts(expected)


def damaged_if_any(reply: bytes) -> bytes:
    return damaged(reply) if reply else reply


def parts(run: ArmRun) -> dict[str, Any]:
    """All that must not differ, but for the kind of a frame, which nobody can read once it is damaged."""
    return {
        "server": encode_state(to_plain(run.server)),
        "clients": run.clients,
        "links": encode_state(dump_states(run.shared_states)),
        "bytes": [replace(entry, kind="", payload=0) for entry in run.ledger.entries],
        "views": [record.views for record in run.records],
    }
