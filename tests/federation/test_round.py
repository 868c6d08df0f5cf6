"""One round: replies are reduced as they come, all of them cross, and it happens whole or not at all."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import pytest

from fedistill import parse
from fedistill.errors import TrainingError
from fedistill.experiment.runner import prepare
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import ClientResult
from fedistill.federation.executor import Job
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run


class Noting(SerialExecutor):
    """Notes which client's work is done when."""

    def __init__(self, *args: Any, notes: list[str]) -> None:
        super().__init__(*args)
        self._notes = notes

    def run_clients(self, arm: str, round: int, jobs: Sequence[Job]) -> Iterator[ClientResult]:
        for result, (client, _, _) in zip(super().run_clients(arm, round, jobs), jobs, strict=True):
            self._notes.append(f"client {client} worked")
            yield result


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def arm_and_executor(notes: list[str]) -> Iterator[tuple[ReadyArm, Noting]]:
    experiment = parse(
        {
            "rounds": 2,
            "task": {"name": "digits", "clients": 3, "limit": 60, "public": 20},
            "models": {"clients": ["mlp-s"], "server": "mlp-s"},
            "train": {"batch_size": 16},
            "arms": [{"method": "dsfl"}],
        },
        "test",
    )
    task, (arm,) = prepare(experiment)
    with Noting(experiment, task, notes=notes) as executor:
        yield arm, executor


def server_step_that_reads(
    arm: ReadyArm, most: int, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the server step note each reply and read no more than so many."""
    step = arm.method.server_step

    def noting(state: Any, server: Any, replies: Iterable[Any]) -> Any:
        def noted() -> Iterator[Any]:
            for reply in islice(replies, most):
                notes.append(f"reply {reply.client}")
                yield reply

        return step(state, server, noted())

    monkeypatch.setattr(arm.method, "server_step", noting)


def test_each_reply_is_reduced_before_the_next_client_is_waited_for(
    arm_and_executor: tuple[ReadyArm, Noting], notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, executor = arm_and_executor
    server_step_that_reads(arm, 3, notes, monkeypatch)
    play_round(start_run(arm), arm, executor)
    assert notes == [
        f"{what} {client}{done}"
        for client in range(3)
        for what, done in (("client", " worked"), ("reply", ""))
    ]


def test_replies_that_the_server_step_does_not_read_have_crossed_too(
    arm_and_executor: tuple[ReadyArm, Noting], notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, executor = arm_and_executor
    server_step_that_reads(arm, 1, notes, monkeypatch)
    run = start_run(arm)
    record = play_round(run, arm, executor)
    assert notes == ["client 0 worked", "reply 0", "client 1 worked", "client 2 worked"]
    assert [(entry.client, entry.direction) for entry in record.traffic] == [(0, "up"), (1, "up"), (2, "up")]
    assert run.clients.keys() == {0, 1, 2}
    assert len(record.work) == 3


def test_a_round_that_fails_leaves_the_run_as_it_was(
    arm_and_executor: tuple[ReadyArm, Noting], notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, executor = arm_and_executor
    run = start_run(arm)
    play_round(run, arm, executor)
    before = (run.round, run.server, dict(run.clients), dict(run.shared_states), list(run.ledger.entries))

    def fail(state: Any, server: Any, replies: Iterable[Any]) -> Any:
        list(replies)
        raise ZeroDivisionError("nothing to share")

    monkeypatch.setattr(arm.method, "server_step", fail)
    with pytest.raises(TrainingError, match=r"round 2, server: ZeroDivisionError: nothing to share"):
        play_round(run, arm, executor)
    assert (run.round, run.server, run.clients, run.shared_states, run.ledger.entries) == before
    assert len(run.records) == 1


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"models": {"clients": ["cnn-s@8"], "server": "mlp-s"}}, True),
        ({"models": {"clients": ["helpers.odd_models:boolean_buffer"], "server": "mlp-s"}}, False),
        ({"train": {"loss": "helpers.own_training:focal"}}, False),
        ({"train": {"optimizer": {"name": "helpers.own_training:counting", "lr": 0.1}}}, False),
        ({"attack": {"kind": "label-flip", "share": 0.3}}, False),
    ],
)
def test_what_is_the_users_own_may_draw_from_any_generator(changed: dict[str, Any], expected: bool) -> None:
    table = {
        "rounds": 1,
        "task": {"name": "digits", "clients": 3, "limit": 60, "public": 20},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "arms": [{"method": "dsfl"}],
    }
    _, (arm,) = prepare(parse({**table, **changed}, "test"))
    assert arm.draws_by_torch_alone is expected
