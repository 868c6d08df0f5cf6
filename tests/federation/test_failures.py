"""The rule for failures: an invalid reply costs its client the round, an exception ends its arm alone."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedistill.communication.kinds import Kind
from fedistill.communication.protocol.frame import StateId
from fedistill.communication.varint import varint
from fedistill.config.schema import Experiment
from fedistill.errors import TrainingError
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare, resume_experiment, run_experiment
from fedistill.federation import round as round_module
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client_sampling import sample_dropouts
from fedistill.federation.failures import (
    ClientFailure,
    check_quorum,
    failing_at,
    list_reasons,
    quorum_of,
)
from fedistill.federation.history import ArmRun, RoundRecord
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.testing.runs import bits, finish, require_one_memory
from helpers.bad_replies import Change, Changing, changing, damaged, only, rewritten, with_section
from helpers.runs import on_digits
from helpers.watchers import Watcher

ROUNDS = 5


def ready(wanted: Experiment) -> ReadyArm:
    _, (arm, *_) = prepare(wanted)
    return arm


def played(wanted: Experiment, change: Change) -> tuple[ReadyArm, ArmRun]:
    """The first arm with replies changed, in one process."""
    arm = ready(wanted)
    with Changing(SerialExecutor(wanted, arm.task), change) as executor:
        return arm, finish(arm, executor)


def crossed(run: ArmRun) -> list[tuple[int, int, str, int]]:
    return [(entry.round, entry.client, entry.direction, entry.bytes) for entry in run.ledger.entries]


# --- a client that is left out once, and all that both sides remember ---

REMEMBERING: dict[str, dict[str, Any]] = {
    "relative": {"method": "fedavg", "codec": {"up": "qsgd", "down": "qsgd"}},
    "residual": {"method": "fedavg", "codec": {"up": "stc", "down": "stc"}},
    **{
        codec: {"method": "fedavg", "codec": {"up": codec, "down": codec}}
        for codec in ("top-k", "sign", "dadaquant", "low-rank", "int8")
    },
    "predicted labels": {"method": "dsfl", "codec": {"name": "simplex", "bits": 2}},
    "votes": {"method": "voting", "samples": 20},
    "cache": {"method": "scarlet", "samples": 15, "duration": 2},
    "cache, coded": {"method": "scarlet", "samples": 15, "codec": {"name": "simplex", "bits": 4}},
    "clusters": {"method": "comet", "codec": {"name": "simplex", "bits": 2}},
    "sent once": {"method": "fedgkt"},
    "chosen": {"method": "selective-fd"},
    "plain": {"method": "fml"},
}
remembering = pytest.mark.parametrize("arm", REMEMBERING.values(), ids=REMEMBERING)
BAD_ONCE = only([2], [1], damaged)


def stop_after_round_2(name: str, record: RoundRecord) -> None:
    if record.round == 2:
        raise KeyboardInterrupt


@remembering
def test_a_client_left_out_once_stays_in_step_as_if_its_reply_had_been_lost(
    arm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, run = played(on_digits(arm), BAD_ONCE)
    assert [record.missing for record in run.records if record.round != 2] == [{}] * (ROUNDS - 1)
    assert run.records[1].missing == {"1": "its reply is refused: frame is damaged: its checksum differs"}
    assert [record.dropped for record in run.records] == [[], [1], [], [], []]
    assert all(entry.kind != "refresh" for entry in run.ledger.entries)
    require_one_memory(run, prepared)

    def lost_once(*given: Any) -> list[int]:
        return [1] if given[-1] == 2 else sample_dropouts(*given)

    monkeypatch.setattr(round_module, "sample_dropouts", lost_once)
    _, expected = played(on_digits(arm), lambda round, client, reply: reply)
    found, wanted = bits(run), bits(expected)
    del found["the ledger"], wanted["the ledger"]
    assert found == wanted
    # Its bytes have crossed, although nobody could read what they were.
    assert crossed(run) == crossed(expected)
    assert [e.kind for e in run.ledger.of_round(2) if (e.client, e.direction) == (1, "up")] == ["unreadable"]


EVERYDAY = ("relative", "residual", "predicted labels", "votes", "cache", "sent once", "plain")


@pytest.mark.parametrize(
    "arm",
    [
        pytest.param(arm, marks=[] if name in EVERYDAY else [pytest.mark.long], id=name)
        for name, arm in REMEMBERING.items()
    ],
)
def test_the_bits_are_those_of_worker_processes_and_of_a_run_that_was_resumed(
    arm: dict[str, Any], tmp_path: Path
) -> None:
    wanted = on_digits(arm)
    prepared, run = played(wanted, BAD_ONCE)
    processes = on_digits(arm, runtime={"kind": "processes", "workers": 2})
    with pytest.raises(KeyboardInterrupt):
        run_experiment(processes, tmp_path / "run", "test", Watcher(stop_after_round_2), changing(BAD_ONCE))
    resume_experiment(tmp_path / "run", Watcher(), changing(BAD_ONCE))
    folder = RunFolder(tmp_path / "run")
    assert bits(folder.restore(prepared)) == bits(run)
    assert [record.missing for record in folder.records(prepared.name)] == [r.missing for r in run.records]
    (described,) = json.loads((tmp_path / "run" / "results.json").read_text())["arms"]
    assert described["rounds"][1]["missing"] == run.records[1].missing
    assert described["rounds"][1]["dropped"] == [1]


def test_a_client_left_out_of_every_round_is_never_heard() -> None:
    """The others' result is that of the same run in which all of its replies are lost."""
    always = only(range(1, ROUNDS + 1), [1], damaged)
    _, run = played(on_digits({"method": "fedavg", "codec": {"up": "qsgd", "down": "qsgd"}}), always)
    assert [record.missing.keys() for record in run.records] == [{"1"}] * ROUNDS
    assert run.shared_states.keys() == {0, 2}
    assert "server@global" in run.records[-1].views


# --- what makes a reply invalid ---


def nan_first(reply: bytes) -> bytes:
    def change(frame: Any) -> Any:
        values = np.frombuffer(frame.sections[0], "<f4").copy()
        values[0] = np.nan
        return replace(frame, sections=(values.tobytes(), *frame.sections[1:]))

    return rewritten(change)(reply)


DSFL = {"method": "dsfl", "codec": "fp32"}
FEDAVG = {"method": "fedavg", "codec": "fp32"}
QSGD = {"method": "fedavg", "codec": {"up": "qsgd", "down": "qsgd"}}
SCARLET = {"method": "scarlet", "samples": 15, "codec": "fp32"}
TURN_1 = np.full((15, 10), 0.1, "<f4").tobytes()
"""What `SCARLET` sends in its first turn, in which all samples are due."""
INVALID: dict[str, tuple[dict[str, Any], Callable[[bytes], bytes], str]] = {
    "a bit": (DSFL, damaged, "frame is damaged: its checksum differs"),
    "cut off": (DSFL, lambda reply: reply[:-1], "frame is damaged: its checksum differs"),
    "nothing like it": (DSFL, lambda reply: b"{}" * 40, "not a fedistill frame: it does not start with 'fd'"),
    "one byte": (DSFL, lambda reply: b"f", "frame of 1 bytes is too short to be one"),
    "another version": (
        DSFL,
        lambda reply: reply[:2] + b"\x09" + reply[3:],
        "frame version 9 is not 2; both sides need the same release",
    ),
    "another round": (
        DSFL,
        rewritten(lambda frame: replace(frame, round=1)),
        "a frame of round 1 came in round 2",
    ),
    "another client": (
        DSFL,
        rewritten(lambda frame: replace(frame, peer=1)),
        "a frame of client 0 came where client 1's belongs",
    ),
    "another kind": (
        DSFL,
        rewritten(lambda frame: replace(frame, kind=Kind.WEIGHTS)),
        "a frame of weights came where soft-labels belong",
    ),
    "an order": (DSFL, rewritten(lambda frame: replace(frame, local=3)), "a reply asks for local training"),
    "a section too many": (
        DSFL,
        rewritten(lambda frame: replace(frame, sections=(*frame.sections, b""))),
        "frame has 3 sections, not 2 (probs, sampled_round)",
    ),
    "numbers too few": (
        DSFL,
        with_section(0, bytes(8)),
        "section 'probs': 8 bytes of fp32 where 400 numbers were expected (1600 bytes)",
    ),
    "NaN": (DSFL, nan_first, "section 'probs': a number in the message is not finite"),
    "labels of old samples": (
        {**DSFL, "samples": 20},
        with_section(1, varint(1)),
        "labels of the public samples of round 1 came in round 2",
    ),
    "labels of all samples, said to be old": (
        {"method": "cfd"},
        with_section(1, varint(1)),
        "labels of the public samples of round 1 came in round 2",
    ),
    "labels of samples to come": (
        {**DSFL, "samples": 20},
        with_section(1, varint(3)),
        "sampled round 3 came in round 2",
    ),
    "a turn that is over": (
        SCARLET,
        rewritten(lambda frame: replace(frame, sections=(TURN_1, varint(1)))),
        "labels of turn 1 came in turn 2",
    ),
    "no samples": (
        FEDAVG,
        with_section(1, varint(0)),
        f"weights claim to be trained on 0 samples, not 1 to {1 << 40}",
    ),
    "samples beyond counting": (
        FEDAVG,
        with_section(1, varint(1 << 41)),
        f"weights claim to be trained on {1 << 41} samples, not 1 to {1 << 40}",
    ),
    "samples beyond counting, by class": (
        {"method": "fedgen", "codec": "fp32"},
        with_section(1, np.full(10, 1e12, "<f4").tobytes()),
        f"weights claim to be trained on 1e+13 samples, more than {1 << 40}",
    ),
    "a state that nobody holds": (
        QSGD,
        rewritten(lambda frame: replace(frame, state_id=StateId(7, b"none"))),
        "a frame coded against shared state 7 (6e6f6e65) came where ",
    ),
    "a refresh with something in it": (
        QSGD,
        rewritten(lambda frame: replace(frame, kind=Kind.REFRESH)),
        "a refresh frame has sections, but must have none",
    ),
}


@pytest.mark.parametrize(("arm", "change", "reason"), INVALID.values(), ids=INVALID)
def test_an_invalid_reply_leaves_its_client_out_of_the_round_alone(
    arm: dict[str, Any], change: Callable[[bytes], bytes], reason: str
) -> None:
    prepared, run = played(on_digits(arm, rounds=3), only([2], [1], change))
    first, second, third = (record.missing for record in run.records)
    assert (first, third) == ({}, {})
    assert second.keys() == {"1"}
    assert second["1"].startswith(f"its reply is refused: {reason}")
    require_one_memory(run, prepared)


def test_labels_that_the_server_has_yet_to_get_are_asked_for_again() -> None:
    """A client of fedgkt that claims to have sent its labels is left out, and sends them in round 2."""

    def without_labels(frame: Any) -> Any:
        features, scores, *_ = frame.sections
        return replace(frame, sections=(features, scores, b"", varint(0)))

    _, run = played(on_digits({"method": "fedgkt"}, rounds=3), only([1], [1], rewritten(without_labels)))
    assert [record.missing for record in run.records] == [
        {"1": "its reply is refused: it has no labels, and the server has none of this client"},
        {},
        {},
    ]
    assert run.server.labels.keys() == {0, 1, 2}


def test_a_refused_message_commits_nothing() -> None:
    """Not even one that was decoded whole and refused by its own check."""
    wanted = on_digits(QSGD, rounds=2)
    arm = ready(wanted)
    liar = only([2], [1], with_section(1, varint(0)))
    with Changing(SerialExecutor(wanted, arm.task), liar) as executor:
        run = start_run(arm)
        play_round(run, arm, executor)
        before = {client: shared.state_id for client, shared in run.shared_states.items()}
        play_round(run, arm, executor)
    after = {client: shared.state_id for client, shared in run.shared_states.items()}
    assert [client for client in after if after[client] == before[client]] == [1]


# --- the quorum ---


@pytest.mark.parametrize(
    ("quorum", "clients", "needed"),
    [(0.5, 1, 1), (0.5, 2, 1), (0.5, 3, 2), (0.5, 4, 2), (0.6, 5, 3), (1.0, 4, 4), (0.01, 9, 1), (0.5, 0, 0)],
)
def test_how_many_are_a_quorum(quorum: float, clients: int, needed: int) -> None:
    assert quorum_of(quorum, clients) == needed
    gone = {client: ClientFailure("gone", reached=True) for client in range(clients - needed)}
    check_quorum(quorum, 1, clients, gone)
    if needed:
        with pytest.raises(TrainingError):
            check_quorum(quorum, 1, clients, {**gone, clients: ClientFailure("gone", reached=True)})


def test_reasons_are_listed_by_client_equal_ones_once_and_not_without_end() -> None:
    assert list_reasons({2: "late", 0: "late", 1: "damaged"}) == "clients 0 and 2: late; client 1: damaged"
    assert list_reasons(dict.fromkeys(range(9), "late")) == "clients 0, 1, 2, 3, 4 and 4 more: late"
    assert list_reasons({0: "a" * 400}) == f"client 0: {'a' * 300}…"
    many = {client: f"reason {client}" for client in range(7)}
    assert list_reasons(many).endswith("client 4: reason 4; 2 more clients for other reasons")


def test_half_of_the_clients_may_be_left_out() -> None:
    _, run = played(on_digits(DSFL, clients=4, rounds=2), only([2], [0, 3], damaged))
    assert run.records[1].dropped == [0, 3]
    assert run.round == 2


BOTH = pytest.mark.parametrize("kind", ["serial", "processes"])
TWO_ARMS = ({**DSFL, "name": "bad"}, {**FEDAVG, "name": "fine"})


@BOTH
def test_more_than_half_end_the_arm_with_the_reasons_and_the_others_go_on(kind: str, tmp_path: Path) -> None:
    wanted = on_digits(*TWO_ARMS, clients=4, rounds=3, runtime={"kind": kind, "workers": 2})

    def change(round: int, client: int, reply: bytes) -> bytes:
        spoil = {0: damaged, 2: lambda reply: reply[:5], 3: damaged}.get(client)
        return spoil(reply) if round == 2 and spoil else reply

    out = tmp_path / "run"
    bad, fine = run_experiment(wanted, out, "test", Watcher(), changing(change, "bad"))["arms"]
    assert (bad["status"], fine["status"]) == ("failed", "done")
    assert bad["error"] == (
        "round 2: 1 of 4 clients sent a valid reply, but flower.quorum asks for 2 (clients 0 and 3: its reply"
        " is refused: frame is damaged: its checksum differs; client 2: its reply is refused: frame of 5"
        " bytes is too short to be one)"
    )
    assert ([r["round"] for r in bad["rounds"]], [r["round"] for r in fine["rounds"]]) == ([1], [1, 2, 3])
    # The round is not recorded, and is tried again.
    resumed, still = resume_experiment(out, Watcher())["arms"]
    assert (resumed["status"], resumed["error"], still["status"]) == ("done", None, "done")
    run_experiment(wanted, tmp_path / "expected", "test", Watcher())
    arm = ready(wanted)
    assert bits(RunFolder(out).restore(arm)) == bits(RunFolder(tmp_path / "expected").restore(arm))


@pytest.mark.parametrize(("quorum", "ends"), [(1.0, True), (0.7, True), (0.6, False), (0.1, False)])
def test_the_setting_is_that_of_a_network(quorum: float, ends: bool) -> None:
    wanted = on_digits(DSFL, rounds=1, flower={"quorum": quorum})
    if ends:
        with pytest.raises(TrainingError, match="round 1: 2 of 3 clients sent a valid reply"):
            played(wanted, only([1], [2], damaged))
    else:
        assert played(wanted, only([1], [2], damaged))[1].records[0].dropped == [2]


def test_too_few_are_named_as_such_though_the_server_step_could_not_do_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An average of nothing would be a division by zero, which nobody asked about."""
    wanted = on_digits(DSFL, rounds=1)
    arm = ready(wanted)

    def average(state: Any, server: Any, replies: Iterable[Any]) -> Any:
        return sum(reply.client for reply in replies) / 0

    monkeypatch.setattr(arm.method, "server_step", average)
    with (
        Changing(SerialExecutor(wanted, arm.task), only([1], [0, 1, 2], damaged)) as executor,
        pytest.raises(TrainingError, match=r"round 1: 0 of 3 clients sent a valid reply.*clients 0, 1 and 2"),
    ):
        play_round(start_run(arm), arm, executor)


def test_lost_replies_are_no_failures() -> None:
    """Their loss is what the experiment asks for."""
    _, run = played(on_digits(DSFL, sampling={"dropout": 0.7}), lambda round, client, reply: reply)
    assert any(len(record.dropped) > 1 for record in run.records)
    assert all(record.missing == {} for record in run.records)


def test_an_error_on_the_way_of_a_stop_is_a_stop() -> None:
    """A dispatch mode of torch that is left by force raises an error of its own."""

    def stopped() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("trying to pop from empty mode stack")

    def broken() -> None:
        raise RuntimeError("no stop")

    with pytest.raises(KeyboardInterrupt), failing_at("round 1, client 0"):
        stopped()
    with pytest.raises(TrainingError, match="RuntimeError: no stop"), failing_at("round 1, client 0"):
        broken()
