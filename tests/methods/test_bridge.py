"""The stages of `bridge`, and what happens if a client's start or votes are not what the server thinks."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedistill.communication.messages.bridge import LEVELS, VOTES, WEIGHTS, BridgeRequest
from fedistill.communication.messages.statistics import FeatureMoments
from fedistill.errors import ExperimentError, FrameError
from fedistill.experiment.preflight import examine
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.methods.base import Reply
from fedistill.methods.combined import bridge
from fedistill.methods.combined.bridge import Bridge
from fedistill.methods.participants import Client
from fedistill.methods.shared import bridge_start
from fedistill.methods.shared.bridge_state import BridgeClient, BridgeServer
from fedistill.methods.shared.expertise import (
    class_levels,
    expert_votes,
    mean_level,
    pool_votes,
    sizes,
    vote_evidence,
)
from fedistill.methods.shared.masked_merges import Changes, masks_of, moved
from fedistill.state import decode_state, from_plain
from fedistill.training.model_state import ModelState
from helpers.runs import finished, ready

SETTINGS: dict[str, Any] = {"vote_epochs": 3, "distill_epochs": 3}
NONE = torch.zeros(0, dtype=torch.int64)


def played(method: str = "bridge", rounds: int = 4, **changes: Any) -> tuple[ReadyArm, ArmRun]:
    models = changes.pop("models", {"clients": ["cnn-s"], "server": "cnn-s"})
    own = {} if method == "gaussian" else SETTINGS
    return finished(
        {
            "rounds": rounds,
            "task": changes.pop("task", None)
            or {
                "name": "digits",
                "clients": 4,
                "limit": 240,
                "public": 60,
                "partition": {"kind": "dirichlet", "alpha": 0.5},
            },
            "models": models,
            "train": {"batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
            "evaluate": {"every": rounds},
            "runtime": {"kind": "serial"},
            "arms": [{"method": method, **own, **changes.pop("arm", {})}],
            **changes,
        }
    )


def frames(run: ArmRun, way: str, round: int) -> list[int]:
    return [e.payload for e in run.ledger.entries if e.direction == way and e.round == round]


def client_state(run: ArmRun, client: int) -> BridgeClient:
    return from_plain(BridgeClient, decode_state(run.clients[client])["method"])


def test_the_first_two_rounds_bring_levels_and_votes() -> None:
    arm, run = played(rounds=2)
    levels = torch.stack([class_levels(data.labels, 10) for data in arm.task.clients])
    assert torch.equal(run.server.levels, levels)
    votes = torch.stack([client_state(run, client).votes for client in range(4)])
    assert torch.equal(run.server.votes, votes)
    assert torch.equal(run.server.labels, pool_votes(votes, sizes(levels)))
    # Ten levels below 64 and two flags; votes of one of eleven symbols each at most.
    assert max(frames(run, "up", 1)) <= 12
    assert max(frames(run, "up", 2)) <= 60 * 3.46 / 8 + 12


def test_all_hold_one_start_and_the_merge_is_the_mean_of_what_clients_send() -> None:
    arm, run = played(rounds=3, arm={"trained_share": 0.5, "up_step": 0.5, "down_step": 1.5})
    states = [client_state(run, client) for client in range(4)]
    assert {state.digest for state in states} == {run.server.starts["cnn-s"]}
    start = states[0].weights
    assert all(torch.equal(state.weights, start) for state in states)
    trained = masks_of(arm.federation, "cnn-s", 0.5)(1)
    sent = [Changes.rounded((state.model.weights - start)[trained], 0.5).values() for state in states]
    mean = sum(samples * one for samples, one in zip(arm.federation.samples, sent, strict=True))
    mean = mean / sum(arm.federation.samples)
    assert torch.allclose(run.server.model.weights, moved(start, mean, trained), atol=1e-6)
    assert torch.equal(run.server.model.weights, run.server.merged["cnn-s"].weights)
    # Clients will follow the rounded mean.
    trail = run.server.trails["cnn-s"]
    assert torch.allclose(
        trail.weights, moved(start, Changes.rounded(mean, 1.5).values(), trained), atol=1e-6
    )
    assert run.server.informed.all()


def test_only_the_mask_of_a_merge_moves() -> None:
    arm, run = played(rounds=5)
    first, second, third = map(masks_of(arm.federation, "cnn-s", 0.05), (1, 2, 3))
    states = [client_state(run, client) for client in range(4)]
    trail = run.server.trails["cnn-s"]
    assert trail.merges == 3
    assert {state.merges for state in states} == {2}
    for state in states:
        still = state.model.weights == state.weights
        assert still[~third].all()
        assert not still[third].all()
        assert torch.equal(trail.weights[~third], state.weights[~third])
    assert trail.counts.tolist() == [int(mask.sum()) for mask in (first, second, third)]


def test_without_levels_first_clients_vote_at_once() -> None:
    """For classes of which they have at least the mean number, 6: 240 images, 4 clients, 10 classes."""
    arm, run = played(rounds=2, arm={"levels_first": False})
    assert mean_level(arm.federation.samples, 10) == round(2 * math.log2(1 + 6)) == run.server.least
    before = BridgeServer.before_round_1(run.server.model, 4, 60, 10, run.server.least)
    request = before.request(3, "cnn-s", coverage=0.8)
    assert request is not None
    assert (request.asks, request.thresholds.tolist()) == (LEVELS | VOTES, [run.server.least] * 10)
    levels = torch.stack([class_levels(data.labels, 10) for data in arm.task.clients])
    assert torch.equal(run.server.levels, levels)
    votes = torch.stack([client_state(run, client).votes for client in range(4)])
    assert torch.equal(run.server.labels, pool_votes(votes, sizes(levels)))
    for own, named in zip(levels, votes, strict=True):
        assert set(named[named < 10].tolist()) <= set((own >= run.server.least).nonzero().flatten().tolist())
    assert (votes < 10).any(dim=1).all()
    assert run.server.trails["cnn-s"].merges == 1
    assert run.server.informed.all()
    _, before = played(rounds=2)
    assert sum(frames(run, "up", 1)) + sum(frames(run, "down", 1)) < sum(
        sum(frames(before, way, number)) for way in ("up", "down") for number in (1, 2)
    )


@given(samples=st.lists(st.integers(0, 10**6), min_size=1, max_size=9), classes=st.integers(2, 100))
def test_the_mean_level_lies_among_the_levels_of_counts(samples: list[int], classes: int) -> None:
    mean = sum(samples) / (len(samples) * classes)
    below, above = (
        int(class_levels(torch.zeros(count, dtype=torch.int64), 1))
        for count in (math.floor(mean), math.ceil(mean))
    )
    assert max(below, 1) <= mean_level(samples, classes) <= max(above, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": {"fraction": 0.5, "dropout": 0.3}},
        {"models": {"clients": ["cnn-s", "mlp-s"], "server": "cnn-m"}},
        {"arm": {"start": "gaussian(width=24)"}},
    ],
    ids=["absent", "unlike", "start"],
)
def test_at_once_all_come_to_one_start(changes: dict[str, Any]) -> None:
    at_once = {"levels_first": False, "enough": 0.3} | changes.get("arm", {})
    ready_arm, run = played(rounds=8, **{**changes, "arm": at_once})
    informed = run.server.informed.nonzero().flatten().tolist()
    assert informed
    for client in informed:
        name = ready_arm.federation.clients[client].model
        assert client_state(run, client).digest == run.server.starts[name]
    assert all(trail.merges for trail in run.server.trails.values())


def test_with_statistics_votes_are_evidence_beside_what_these_say() -> None:
    arm, run = played(rounds=3, arm={"start": "gaussian(width=24)"})
    sums, alone = played("gaussian", rounds=1, arm={"width": 24, "distill_epochs": 1})
    logits = sums.method.public_logits(alone.server, sums.server(1))  # type: ignore[attr-defined]  # of statistics
    assert torch.equal(run.server.prior, logits)
    levels = torch.stack([class_levels(data.labels, 10) for data in arm.task.clients])
    assert torch.equal(run.server.levels, levels)
    # All vote, whatever share of a class they have.
    assert all((votes < 10).all() for votes in run.server.votes)
    pooled = (logits.double().log_softmax(dim=1) + vote_evidence(run.server.votes, levels)).argmax(dim=1)
    assert torch.equal(run.server.labels, pooled)
    states = [client_state(run, client) for client in range(4)]
    assert {state.digest for state in states} == {run.server.starts["cnn-s"]}
    kinds = [{one.kind for one in record.traffic} for record in run.records]
    assert kinds == [
        {"statistics-request", "feature-moments"},
        {"bridge-request", "bridge-reply"},
        {"bridge-request", "bridge-reply"},
    ]
    with pytest.raises(FrameError, match="it sends statistics, which it was not asked for"):
        arm.method.check_reply(run.server, arm.server(4), Reply(0, FeatureMoments(*[NONE] * 5, 0, 15)))


def test_with_statistics_a_client_that_comes_after_the_votes_is_given_the_labels() -> None:
    _, run = played(rounds=8, sampling={"fraction": 0.5}, arm={"start": "gaussian(width=24)", "enough": 0.3})
    late = ((run.server.votes[:, 0] < 0) & run.server.informed).nonzero().flatten().tolist()
    assert late
    for client in late:
        assert client_state(run, client).digest == run.server.starts["cnn-s"]


def test_a_client_with_one_class_abstains() -> None:
    """On two classes its votes would outweigh all others, and say nothing."""
    predicted, least = torch.tensor([0, 0, 1]), torch.ones(2, dtype=torch.int64)
    assert expert_votes(predicted, torch.tensor([14, 0]), least).tolist() == [2, 2, 2]
    assert expert_votes(predicted, torch.tensor([14, 2]), least).tolist() == [0, 0, 1]
    assert expert_votes(predicted, torch.tensor([14, 2]), torch.tensor([1, 3])).tolist() == [0, 0, 2]


def test_who_abstains_is_no_expert_either() -> None:
    """Class 3 is mostly with clients that have it alone; two others vote for it."""
    counts = torch.tensor([[0, 0, 0, 500], [0, 0, 0, 400], [90, 90, 0, 50], [0, 90, 90, 40]])
    levels = (2 * (1 + counts).double().log2()).round().long()
    state = replace(BridgeServer.before_round_1(ModelState(torch.zeros(1)), 4, 20, 4, 0), levels=levels)
    request = state.request(2, "cnn-s", coverage=0.8)
    assert request is not None
    assert (levels[2:, 3] >= request.thresholds[3]).all()


def test_if_all_have_one_class_the_start_is_the_initial_model() -> None:
    partition = {"kind": "indices", "clients": [[0, 10, 20], [1, 11, 21], [2, 12, 22]]}
    task = {"name": "digits", "public": 40, "partition": partition}
    arm, run = played(rounds=4, task=task)
    assert {len(data.labels.unique()) for data in arm.task.clients} == {1}
    initial = arm.server(0).common_model("cnn-s").weights
    trained = masks_of(arm.federation, "cnn-s", 0.05)
    assert run.server.trails["cnn-s"].merges == 2
    still = ~(trained(1) | trained(2))
    assert torch.equal(run.server.trails["cnn-s"].weights[still], initial[still])


def test_evidence_of_votes() -> None:
    """Two classes that a client has, of 60 samples each, and one that it lacks; by hand."""
    count = 2 * torch.tensor(61.0).log2()
    level = torch.tensor([[int(count.round()), int(count.round()), 0]])
    held = 2 ** (int(count.round()) / 2) - 1
    sure = 0.97 * held / (held + 20)
    right, wrong = sure + (1 - sure) / 2, (1 - sure) / 2
    expected = torch.tensor([[right, wrong, 0.5], [wrong, right, 0.5], [1.0, 1.0, 1.0]]).double().log()
    found = vote_evidence(torch.tensor([[0, 1, 3]]), level)
    assert torch.allclose(found, expected)
    nobody = torch.full((1, 3), -1)
    assert torch.equal(vote_evidence(nobody, nobody), torch.zeros(3, 3).double())


def test_votes_may_count_equally() -> None:
    _, run = played(rounds=2, arm={"weighting": "equal"})
    assert torch.equal(run.server.labels, pool_votes(run.server.votes, torch.ones(4, 10)))


def test_fewer_samples_may_be_voted_on() -> None:
    _, run = played(rounds=3, arm={"samples": 20})
    _, whole = played(rounds=3)
    assert run.server.votes.shape == (4, 20)
    assert torch.equal(run.server.votes, whole.server.votes[:, :20])
    assert run.server.informed.all()
    assert max(frames(run, "up", 2)) < max(frames(whole, "up", 2))
    assert max(frames(run, "down", 3)) < max(frames(whole, "down", 3))
    assert played(rounds=2, arm={"samples": 1000})[1].server.votes.shape == (4, 60)


def test_labels_come_down_once() -> None:
    _, run = played(rounds=5)
    third, fourth = frames(run, "down", 3), frames(run, "down", 4)
    assert max(third) > 15
    # 60 labels of at most 3.5 bits, and no change yet.
    assert max(third) <= 60 * 3.5 / 8 + 40
    assert max(fourth) <= max(frames(run, "down", 5)) + 20


def test_a_client_whose_start_differs_is_given_the_servers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_another_machine(state: BridgeClient, client: Client, *rest: Any) -> Tensor:
        """One client's machine computes other last bits."""
        made = bridge_start.start_of(state, client, *rest)
        return made + 1e-6 if client.id == 1 else made

    monkeypatch.setattr(bridge, "start_of", on_another_machine)
    arm, run = played(rounds=6)
    assert run.server.given.tolist() == [False, True, False, False]
    assert run.server.informed.all()
    size = arm.federation.clients[1].parameters
    by_round = {
        round: [
            e.payload
            for e in run.ledger.entries
            if e.client == 1 and e.direction == "down" and e.round == round
        ]
        for round in range(3, 7)
    }
    # Its reply of round 3 is relative to another start; the start comes down in round 4, and only then.
    assert by_round[4][0] > size
    assert max(by_round[5][0], by_round[6][0]) < size
    given, made = client_state(run, 1).weights, client_state(run, 0).weights
    assert (given - made).abs().max() <= made.abs().max() / 1024  # fp16
    assert client_state(run, 2).digest == run.server.starts["cnn-s"]
    assert not torch.equal(given, made)


class Forgetful(Bridge):
    """One client loses its votes after it has sent them."""

    name = "forgetful"

    def client_step(self, state: BridgeClient, client: Client, received: Any) -> Any:
        if client.id == 2 and client.round == 3:
            state = replace(state, votes=NONE)
        return super().client_step(state, client, received)


def test_a_client_without_its_votes_gets_all_labels_in_the_next_round() -> None:
    _, run = played("test_bridge:Forgetful", rounds=4)
    assert run.server.informed.all()
    assert not run.server.given.any()
    assert client_state(run, 2).digest == run.server.starts["cnn-s"]
    assert torch.equal(client_state(run, 2).weights, client_state(run, 0).weights)


def test_weights_wait_until_enough_clients_have_voted() -> None:
    _, run = played(rounds=8, sampling={"fraction": 0.5}, arm={"enough": 1.0, "trained_share": 0.5})
    asked = [record.clients for record in run.records]
    voted: set[int] = set()
    for round, clients in enumerate(asked, 1):
        merging = len(voted) == 4
        assert (max(frames(run, "up", round), default=0) > 50) == merging
        voted |= set(clients) if round > 1 else set()
    assert run.server.starts


def test_architectures_share_labels_and_the_server_learns_from_each_mean() -> None:
    _, run = played(models={"clients": ["cnn-s", "mlp-s"], "server": "cnn-m"})
    assert sorted(run.server.merged) == ["cnn-s", "mlp-s"]
    assert all(
        run.server.trails[name].merges == 2 and run.server.trails[name].changes.any()
        for name in run.server.merged
    )


def test_models_with_buffers_are_refused() -> None:
    raw = {
        "rounds": 1,
        "task": {"name": "digits", "clients": 2, "limit": 60, "public": 20},
        "models": {"clients": ["test_bridge:batch_norm"], "server": "cnn-s"},
        "arms": [{"method": "bridge"}],
    }
    experiment, arm = ready(raw)
    errors = [finding.what for finding in examine(experiment, arm.task, [arm]) if finding.level == "error"]
    assert any("has buffers, such as the statistics of batch norm" in error for error in errors)


def batch_norm(signature: Any) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 10))


@pytest.mark.parametrize("setting", [{"coverage": 0}, {"enough": 1.1}, {"vote_epochs": 0}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ExperimentError, match=next(iter(setting))):
        played(arm=setting)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_labels_coded_given_votes_come_back(seed: int, samples: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    votes = torch.randint(0, 4, (samples,), generator=drawn)
    labels = torch.randint(0, 4, (samples,), generator=drawn)
    named = votes < 3
    agreement = torch.where(labels[named] == votes[named], 0, 1 + labels[named])
    request = BridgeRequest(
        WEIGHTS, 1, int(named.sum()), 0, 1, 0, NONE, agreement, labels[~named], NONE, NONE, NONE
    )
    found = request.pooled(votes, 3)
    assert found is not None
    assert torch.equal(found, labels)
    other = torch.full_like(votes, 3)
    assert request.pooled(other, 3) is None or not named.any()
