"""Methods that begin with one-shot statistics: who is asked for what, and where the labels come from."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import one_hot

from fedistill.communication.messages.labels import Votes
from fedistill.communication.messages.statistics import FeatureMoments
from fedistill.errors import ExperimentError, FrameError
from fedistill.federation.arm import ReadyArm, resolve_arm
from fedistill.federation.expected_bytes import expected_bytes, expected_bytes_of_others
from fedistill.federation.history import ArmRun
from fedistill.methods.base import Reply
from fedistill.methods.participants import sample_public
from helpers.runs import finished, ready

START = {"name": "gaussian", "width": 24, "distill_epochs": 3}


def raw(rounds: int, **arm: Any) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "task": {
            "name": "digits",
            "clients": 4,
            "limit": 400,
            "public": 120,
            "partition": {"kind": "dirichlet", "alpha": 0.5},
        },
        "models": {"clients": ["mlp-s"], "server": "cnn-s"},
        "train": {"optimizer": {"lr": 0.05, "momentum": 0.9}},
        "arms": [{"method": "voting", **arm}],
    }


def played(rounds: int, sampling: dict[str, Any] | None = None, **arm: Any) -> tuple[ReadyArm, ArmRun]:
    return finished({**raw(rounds, **arm), "sampling": sampling or {}})


def kinds(run: ArmRun) -> list[tuple[int, int, str, str]]:
    return [(one.round, one.client, one.direction, one.kind) for one in run.ledger.entries]


@pytest.mark.parametrize("samples", [None, 50])
def test_the_first_labels_and_the_servers_model_are_those_of_the_statistics(samples: int | None) -> None:
    """The same model as the server of the statistics' own arm has, and the classes it learned from."""
    statistics, alone = played(1, method="gaussian", width=24, distill_epochs=3)
    chosen = {} if samples is None else {"samples": samples}
    arm, run = played(1, start=START, **chosen)
    assert torch.equal(run.server.model.weights, alone.server.model.weights)
    logits = statistics.method.public_logits(alone.server, statistics.server(1))  # type: ignore[attr-defined]  # of statistics
    classes = logits.argmax(dim=1)
    drawn = sample_public(arm.seed, 120, samples or 120, 1)
    assert torch.equal(run.server.labels, one_hot(classes[drawn], 10).float())
    assert run.server.sampled_round == 1
    assert [one.payload for one in run.ledger.entries] == [one.payload for one in alone.ledger.entries]


def test_statistics_cross_once_and_then_labels() -> None:
    _, run = played(3, start=START)
    everyone = range(4)
    expected = [
        *((1, client, "down", "statistics-request") for client in everyone),
        *((1, client, "up", "feature-moments") for client in everyone),
        *((round, client, way, "votes") for round in (2, 3) for way in ("down", "up") for client in everyone),
    ]
    assert sorted(kinds(run)) == sorted(expected)


def test_clients_that_are_away_are_asked_until_enough_have_answered() -> None:
    arm, run = played(30, {"fraction": 0.25, "dropout": 0.4}, start=START, enough=0.75)
    samples = arm.federation.samples
    arrived: set[int] = set()
    for record in run.records:
        (client,) = record.clients
        sent = {(one.direction, one.kind) for one in record.traffic}
        if sum(samples[one] for one in arrived) >= 0.75 * sum(samples):
            assert sent == {("down", "votes"), ("up", "votes")}
        elif client in arrived:
            assert sent == set()
        else:
            assert sent == {("down", "statistics-request"), ("up", "feature-moments")}
        arrived |= set(record.clients) - set(record.dropped)
    assert {one.kind for one in run.records[-1].traffic} == {"votes"}


def test_a_reply_of_the_wrong_kind_is_refused() -> None:
    arm, run = played(1, start=START)
    server, before = arm.server(2), arm.method.start_server(arm.server(0))
    votes = Votes(torch.zeros(120, 10), 2)
    nothing = torch.zeros(0, dtype=torch.int64)
    moments = FeatureMoments(nothing, nothing, nothing, nothing, nothing, 0, 15)
    arm.method.check_reply(run.server, server, Reply(0, votes))
    with pytest.raises(FrameError, match="it was asked for labels, and sends statistics"):
        arm.method.check_reply(run.server, server, Reply(0, moments))
    with pytest.raises(FrameError, match="it was asked for its statistics, and sends labels"):
        arm.method.check_reply(before, server, Reply(0, votes))
    with pytest.raises(FrameError, match="it counts 0 samples"):
        arm.method.check_reply(before, server, Reply(0, moments))
    with pytest.raises(FrameError, match="labels of the public samples of round 1 came in round 2"):
        arm.method.check_reply(run.server, server, Reply(0, replace(votes, sampled_round=1)))


def test_a_name_stands_for_its_table() -> None:
    _, short = ready(raw(1, start="ridge(width=16)"))
    _, long = ready(raw(1, start={"name": "ridge", "width": 16}))
    assert short.config == long.config
    assert resolve_arm(short.config) == short.config


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("ridge(width=", "the brackets do not enclose the settings of one name"),
        ("median", "start"),
        ({"name": "gaussian", "widht": 3}, "widht"),
        ("naive-bayes", "method naive-bayes needs texts"),
        ("gaussian(width=500)", "have 128 features, fewer than width = 500"),
    ],
)
def test_what_cannot_be_is_refused(start: Any, said: str) -> None:
    def checked() -> None:
        _, arm = ready(raw(1, start=start))
        arm.method.check(arm.federation)

    with pytest.raises(ExperimentError, match=said):
        checked()


def test_doctor_names_the_bytes_of_the_start() -> None:
    _, plain = ready(raw(1))
    _, arm = ready(raw(1, start=START))
    assert expected_bytes(arm) == expected_bytes(plain)
    assert expected_bytes_of_others(plain) == 0
    _, run = played(1, start=START)
    assert 0.5 * expected_bytes_of_others(arm) < run.ledger.total <= expected_bytes_of_others(arm)
