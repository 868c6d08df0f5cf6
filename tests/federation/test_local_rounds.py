"""When an exchange is due, worked out by hand; and what travels and is trained when it is."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedistill import parse
from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.labels import SoftLabels
from fedistill.communication.messages.weights import Weights
from fedistill.communication.protocol.frame import EVERYONE, Frame, decode, encode
from fedistill.config.schema import WhenWorth
from fedistill.errors import ExperimentError, FrameError
from fedistill.experiment.preflight import examine
from fedistill.experiment.runner import prepare
from fedistill.federation.client import ClientResult
from fedistill.federation.executor import Executor, Job
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.local_rounds import (
    PastExchange,
    fixed_rounds,
    relative_change,
    scheduled_rounds,
    worthwhile_rounds,
)
from fedistill.federation.round import play_round
from fedistill.federation.scores import Scores
from fedistill.federation.setup import start_run
from fedistill.testing.runs import finish


def rounds_due(accumulate: int, rounds: int) -> dict[int, int]:
    """Every exchange of a run and the local rounds behind it."""
    done: list[PastExchange] = []
    for round in range(1, rounds + 1):
        local = scheduled_rounds(accumulate, done, round, rounds)
        if local:
            done.append(PastExchange(round, local, 100, None))
    return {one.round: one.local for one in done}


def test_a_fixed_number() -> None:
    assert rounds_due(1, 3) == {1: 1, 2: 1, 3: 1}
    assert rounds_due(3, 9) == {3: 3, 6: 3, 9: 3}
    assert rounds_due(3, 8) == {3: 3, 6: 3, 8: 2}  # the last round always exchanges
    assert rounds_due(9, 4) == {4: 4}


@given(accumulate=st.integers(1, 12), rounds=st.integers(1, 60))
def test_clients_tell_a_fixed_number_by_themselves(accumulate: int, rounds: int) -> None:
    for round, local in rounds_due(accumulate, rounds).items():
        assert fixed_rounds(accumulate, round) == local


def test_what_an_exchange_is_worth() -> None:
    """The first brought 0.4 for 100 bytes. Now a round brings 0.1 for 100: four rounds make up for it."""
    first, now = PastExchange(1, 1, 100, 0.4), PastExchange(2, 1, 100, 0.1)
    assert worthwhile_rounds(WhenWorth(worth=1.0, most=8), [first, now]) == 4
    assert worthwhile_rounds(WhenWorth(worth=0.5, most=8), [first, now]) == 2
    assert worthwhile_rounds(WhenWorth(worth=1.0, most=3), [first, now]) == 3
    # Half the bytes: half the rounds. Behind two rounds, 0.1 is half the change a round.
    assert worthwhile_rounds(WhenWorth(), [first, PastExchange(2, 1, 50, 0.1)]) == 2
    assert worthwhile_rounds(WhenWorth(), [first, PastExchange(3, 2, 100, 0.1)]) == 8
    assert worthwhile_rounds(WhenWorth(), [first, PastExchange(2, 1, 100, 0.9)]) == 1
    assert worthwhile_rounds(WhenWorth(most=5), [first, PastExchange(2, 1, 100, 0.0)]) == 5


def test_before_anything_is_measured_each_round_exchanges() -> None:
    assert worthwhile_rounds(WhenWorth(), []) == 1
    assert worthwhile_rounds(WhenWorth(), [PastExchange(1, 1, 100, None)]) == 1
    assert worthwhile_rounds(WhenWorth(), [PastExchange(1, 1, 0, 0.5)]) == 1


SIZES = MessageContext(
    classes=2, parameters=2, samples=2, population=5, sampled=lambda round: np.array([round, 4])
)


def test_change_of_weights() -> None:
    """From (3, 4) to (3, 0): 4 of 3."""
    before, after = (Weights(torch.tensor(values)) for values in ([3.0, 4.0], [3.0, 0.0]))
    assert relative_change(before, after, SIZES) == pytest.approx(4 / 3)
    assert relative_change(before, before, SIZES) == 0
    assert relative_change(before, Weights(torch.zeros(2)), SIZES) is None
    assert relative_change(before, SoftLabels(torch.ones(2, 2), 1), SIZES) is None


def test_change_of_labels_is_that_of_the_samples_both_speak_of() -> None:
    """Round 1 speaks of samples 1 and 4, round 2 of 2 and 4: sample 4 goes from (1, 0) to (0.6, 0.8)."""
    before = SoftLabels(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), 1)
    after = SoftLabels(torch.tensor([[0.9, 0.1], [0.6, 0.8]]), 2)
    assert relative_change(before, after, SIZES) == pytest.approx((0.16 + 0.64) ** 0.5)
    apart = MessageContext(
        classes=2, samples=2, population=5, sampled=lambda round: np.array([2, 3]) - round % 2 * 2
    )
    assert relative_change(before, after, apart) is None


# In a run

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("fedavg", {"clients": ["mlp-s"], "server": "mlp-s"}),
    ("dsfl", {"clients": ["mlp-s"], "server": "mlp-s"}),
]


def played(accumulate: Any, arm: tuple[str, dict[str, Any]], **changes: Any) -> tuple[ArmRun, Any, "Spy"]:
    method, models = arm
    raw = {
        "rounds": 5,
        "task": {"name": "digits", "clients": 2, "limit": 60, "public": 40},
        "models": models,
        "arms": [{"method": method, "accumulate": accumulate}],
        **changes,
    }
    wanted = parse(raw, "test")
    _, (ready,) = prepare(wanted)
    with Spy(SerialExecutor(wanted, ready.task)) as spy:
        run = finish(ready, spy)
    return run, ready, spy


class Spy(Executor):
    """Keeps the frames down."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.down: dict[int, list[bytes]] = {}

    def run_clients(self, arm: str, round: int, jobs: Sequence[Job]) -> Iterator[ClientResult]:
        self.down[round] = [frame for _, _, frame in jobs]
        return self.inner.run_clients(arm, round, jobs)

    def evaluate(self, arm: str, jobs: Sequence[Job]) -> Iterator[Scores | None]:
        return self.inner.evaluate(arm, jobs)

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("arm", METHODS, ids=[name for name, _ in METHODS])
def test_rounds_without_an_exchange_cost_nothing(arm: tuple[str, dict[str, Any]]) -> None:
    run, _, spy = played(2, arm)
    assert [record.local for record in run.records] == [0, 2, 0, 2, 1]
    assert [bool(record.clients) for record in run.records] == [False, True, False, True, True]
    assert {entry.round for entry in run.ledger.entries} == {2, 4, 5}
    assert [bool(record.views) for record in run.records] == [False, True, False, True, True]
    assert all(decode(frame).local == 1 for frames in spy.down.values() for frame in frames if frame)


def test_what_accumulates_is_local_training() -> None:
    """Two rounds at once are one round of two epochs: same frames up, but for the name of the round."""
    fedavg = METHODS[0]
    twice, _, _ = played(2, fedavg, rounds=2)
    _, ready, _ = played(1, fedavg, rounds=1)
    client = ready.client(0, 2, local=2)
    assert (client.train.epochs, ready.client(0, 2).train.epochs) == (2, 1)
    message = ready.method.send(start_run(ready).server, ready.server(2), 0)
    trained = [ready.method.client_step({}, ready.client(k, 2, local=2), message)[1] for k in (0, 1)]
    mean = sum(one.values * one.samples for one in trained) / sum(one.samples for one in trained)
    torch.testing.assert_close(twice.server.model.weights, mean)


@pytest.mark.parametrize("arm", METHODS, ids=[name for name, _ in METHODS])
def test_an_adaptive_arm_asks_in_its_frames(arm: tuple[str, dict[str, Any]]) -> None:
    """Nothing is worth 1,000 times the first exchange, so as much accumulates as may."""
    run, _, spy = played({"worth": 1000.0, "most": 3}, arm, rounds=8)
    locals_ = {record.round: record.local for record in run.records if record.local}
    first = {1: 1} if arm[0] == "fedavg" else {1: 1, 2: 1}  # labels are compared from the second on
    assert locals_ == first | ({4: 3, 7: 3, 8: 1} if arm[0] == "fedavg" else {5: 3, 8: 3})
    assert [record.change is not None for record in run.records if record.local][len(first) - 1 :]
    for round, frames in spy.down.items():
        assert {decode(frame).local for frame in frames if frame} <= {locals_[round]}


def test_more_than_the_arm_allows_is_refused() -> None:
    _, ready, _ = played({"most": 3}, METHODS[0], rounds=1)
    frame = encode(Frame(Kind.WEIGHTS, 2, EVERYONE, (b"",), local=4))
    with pytest.raises(FrameError, match="asks for 4 rounds of local training, more than 3"):
        ready.local_rounds(2, frame)


@pytest.mark.parametrize("method", ["local", "server-alone"])
def test_nothing_to_exchange_nothing_to_accumulate(method: str) -> None:
    raw = {
        "rounds": 2,
        "task": {"name": "digits", "clients": 2, "limit": 60, "public": 40},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "arms": [{"method": method, "accumulate": 2}],
    }
    wanted = parse(raw, "test")
    task, arms = prepare(wanted)
    said = [str(finding) for finding in examine(wanted, task, arms) if finding.level == "error"]
    assert said == [
        f"arm '{method}': method {method} exchanges nothing, so there is nothing to wait for: take"
        " `accumulate` out of this arm"
    ]


@pytest.mark.parametrize(("value", "said"), [(0, "accumulate"), ("2", "accumulate"), ({"worht": 1}, "worth")])
def test_a_wrong_setting_is_named(value: Any, said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        played(value, METHODS[0])


def test_resuming_goes_on_with_what_is_due(tmp_path: Path) -> None:
    """All that decides is in the records, which a checkpoint has."""
    from fedistill.experiment.run_folder import RunFolder

    run, ready, _ = played({"worth": 1000.0, "most": 3}, METHODS[1], rounds=8)
    raw = {
        "rounds": 8,
        "task": {"name": "digits", "clients": 2, "limit": 60, "public": 40},
        "models": METHODS[1][1],
        "arms": [{"method": "dsfl", "accumulate": {"worth": 1000.0, "most": 3}}],
    }
    wanted = parse(raw, "test")
    folder = RunFolder.create(tmp_path / "run", wanted, "test")
    with SerialExecutor(wanted, ready.task) as executor:
        again = start_run(ready)
        for _ in range(4):  # two exchanges, and two rounds into what accumulates
            play_round(again, ready, executor)
            folder.add_round(ready, again)
            folder.save(ready, again)
        again = finish(ready, executor, RunFolder.open(tmp_path / "run").restore(ready))
    assert [record.local for record in again.records] == [record.local for record in run.records]
    assert torch.equal(again.server.model.weights, run.server.model.weights)
    assert json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])["local"] == 0
