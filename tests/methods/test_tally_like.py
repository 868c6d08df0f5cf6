"""The two kinds of exchange of `tally-like`, and what happens if a client's last votes were lost."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedistill.communication.messages.tally import TallyReply, classes_given
from fedistill.errors import FrameError
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.methods.base import Reply
from fedistill.methods.shared.tally_state import TallyClient
from fedistill.state import decode_state, from_plain
from helpers.runs import finished

SAME = {"clients": ["cnn-s"], "server": "cnn-s"}
PUBLIC, CLIENTS = 60, 4


def played(rounds: int = 4, models: dict[str, Any] = SAME, **arm: Any) -> tuple[ReadyArm, ArmRun]:
    return finished(
        {
            "rounds": rounds,
            "task": {
                "name": "digits",
                "clients": CLIENTS,
                "limit": 240,
                "public": PUBLIC,
                "partition": {"kind": "dirichlet", "alpha": 0.5},
            },
            "models": models,
            "train": {"batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
            "evaluate": {"every": rounds},
            "runtime": {"kind": "serial"},
            "arms": [{"method": "tally-like", "merge_every": 3, **arm}],
        }
    )


def frames(run: ArmRun, way: str, round: int) -> list[int]:
    return [e.payload for e in run.ledger.entries if e.direction == way and e.round == round]


def states(run: ArmRun) -> list[TallyClient]:
    return [from_plain(TallyClient, decode_state(run.clients[client])["method"]) for client in range(CLIENTS)]


def test_the_server_knows_what_clients_voted_and_the_majority() -> None:
    _, run = played(rounds=2)
    assert run.server.voted.tolist() == [2] * CLIENTS
    for client, state in enumerate(states(run)):
        assert torch.equal(run.server.votes[client], state.votes)
        assert state.voted == 2
    counts = one_hot(run.server.votes, 10).sum(dim=0)
    chosen = counts.gather(1, run.server.labels[:, None])[:, 0]
    assert torch.equal(chosen, counts.max(dim=1).values)


def test_every_third_exchange_is_of_weights_and_nothing_else() -> None:
    arm, run = played(rounds=4, codec="fp32")
    size = 4 * arm.federation.clients[0].parameters
    # A flag, and on the way down two more numbers.
    assert frames(run, "up", 3) == [size + 1] * CLIENTS
    assert frames(run, "down", 3) == [size + 3] * CLIENTS
    # Labels of before the merge are in the merged model, and are not sent.
    assert frames(run, "down", 1) == frames(run, "down", 4) == [3] * CLIENTS
    bound = PUBLIC * math.log2(11) / 8 + 10
    assert max(frames(run, "up", 1) + frames(run, "up", 4)) <= bound
    assert 10 < max(frames(run, "down", 2)) <= bound
    assert run.server.exchanges == 4


def test_a_merge_is_the_mean_of_what_clients_send_by_samples() -> None:
    arm, run = played(rounds=3, codec="fp32")
    weights = torch.stack([state.model.weights for state in states(run)])
    samples = torch.tensor([float(count) for count in arm.federation.samples])
    mean = (weights * samples[:, None]).sum(dim=0) / samples.sum()
    assert torch.allclose(run.server.merged["cnn-s"].weights, mean, atol=1e-6)
    assert torch.equal(run.server.model.weights, run.server.merged["cnn-s"].weights)
    assert not len(run.server.labels)


def test_votes_are_cheaper_given_labels_than_alone() -> None:
    """Clients that have learned the labels agree with most of them."""
    _, run = played(rounds=8, merge_every=100, distill_epochs=3)
    assert sum(frames(run, "up", 8)) < 0.7 * CLIENTS * PUBLIC * math.log2(10) / 8


def test_models_of_other_architectures_share_the_votes() -> None:
    models = {"clients": ["cnn-s", "mlp-s"], "server": "cnn-m"}
    arm, run = played(rounds=3, models=models, codec="fp32")
    assert set(run.server.merged) == {"cnn-s", "mlp-s"}
    sizes = [4 * info.parameters + 1 for info in arm.federation.clients]
    assert frames(run, "up", 3) == sizes
    assert len(run.server.model.weights) not in {info.parameters for info in arm.federation.clients}


def test_labels_given_votes_whose_reply_was_lost_are_not_learned() -> None:
    arm, run = played(rounds=2, merge_every=9)
    request = arm.method.send(run.server, arm.server(3), 0)
    assert request.base == 2
    client, state = arm.client(0, 3), states(run)[0]
    _, follows = arm.method.client_step(state, client, request)
    later = replace(state, votes=9 - state.votes, voted=3)
    _, alone = arm.method.client_step(later, client, request)
    assert (follows.votes == 0).any()  # said given the labels
    assert (alone.votes > 0).all()  # said as classes, which the server can read either way
    expected = classes_given(alone.votes, None)
    assert torch.equal(classes_given(alone.votes, run.server.labels), expected)


def replies(votes: Tensor, merges: int = 0) -> Reply[TallyReply]:
    return Reply(0, TallyReply(torch.zeros(0), merges, votes))


def test_replies_that_no_correct_client_sends_are_refused() -> None:
    arm, run = played(rounds=1)
    before = replace(run.server, labels=torch.zeros(0, dtype=torch.int64))
    server = arm.server(2)
    arm.method.check_reply(before, server, replies(torch.ones(PUBLIC, dtype=torch.int64)))
    with pytest.raises(FrameError, match="no others"):
        arm.method.check_reply(before, server, replies(torch.zeros(PUBLIC, dtype=torch.int64)))
    with pytest.raises(FrameError, match="weights came in an exchange of votes"):
        arm.method.check_reply(before, server, replies(torch.zeros(0), merges=1))
