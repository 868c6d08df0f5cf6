"""Runs with noise: what clients spend of their privacy, that runs repeat bit for bit, and what is refused."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedistill import compare, parse, resume
from fedistill.communication.messages.base import Message
from fedistill.communication.messages.labels import Votes
from fedistill.errors import ExperimentError, Refusal, TrainingError
from fedistill.experiment.preflight import examine
from fedistill.experiment.runner import prepare
from fedistill.federation.local_executor import ProcessExecutor, SerialExecutor
from fedistill.federation.privacy_budget import check_privacy, planned_epsilons, spent_epsilons
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.methods.base import Method, NoSettings, Reply
from fedistill.methods.participants import Client, Server
from fedistill.methods.registry import METHODS
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.privacy.accounting import gaussian_epsilon, randomised_response_epsilon
from fedistill.privacy.registry import refuse_privacy_on_network
from fedistill.testing.runs import bits, finish
from helpers.method_rows import ROWS, Row
from helpers.runs import finished, ready

ALL_RECORDS = {"kind": "dp-sgd", "noise": 4.0, "rate": 1.0}
"""Each batch has all records: what this spends has a formula."""


def small(**tables: Any) -> dict[str, Any]:
    return {
        "rounds": 2,
        "task": {"name": "digits", "clients": 3, "limit": 60, "public": 20},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "runtime": {"kind": "serial"},
        "privacy": ALL_RECORDS,
        "arms": [{"method": "dsfl"}],
    } | tables


ARMS: dict[str, dict[str, Any]] = {
    "dp-sgd": {"method": "fedavg", "privacy": {"kind": "dp-sgd", "noise": 1.0, "rate": 0.5}},
    "randomised-response": {"method": "voting", "privacy": {"kind": "randomised-response", "each": 1.0}},
    "gaussian-labels": {"method": "fedmd", "privacy": {"kind": "gaussian-labels", "noise": 1.0}},
    "noisy-votes": {"method": "voting", "privacy": {"kind": "noisy-votes", "noise": 1.0}},
}


@pytest.mark.parametrize("name", ARMS)
def test_serial_is_processes(name: str) -> None:
    experiment = parse(small(arms=[ARMS[name]]), "test")
    _, (arm,) = prepare(experiment)
    with SerialExecutor(experiment, arm.task) as serial:
        once = finish(arm, serial)
    with ProcessExecutor(2, experiment, arm.task) as processes:
        assert bits(finish(arm, processes)) == bits(once)
    plain = parse(small(arms=[{**ARMS[name], "privacy": {"kind": "none"}}]), "test")
    _, (other,) = prepare(plain)
    with SerialExecutor(plain, other.task) as executor:
        assert bits(finish(other, executor)) != bits(once)


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Answers that were given are kept on disk; so are the figures."""
    arms = [{"name": name, **arm} for name, arm in ARMS.items()]
    whole = compare(parse(small(arms=arms, rounds=3), "test"), tmp_path / "whole")
    parts = compare(parse(small(arms=arms, rounds=2), "test"), tmp_path / "parts")
    assert [parts[name].status for name in ARMS] == ["done"] * len(arms)
    file = tmp_path / "parts" / "experiment.toml"
    file.write_text(file.read_text().replace("rounds = 2", "rounds = 3"))
    resumed = resume(tmp_path / "parts")
    for name in ARMS:
        assert resumed[name].views == whole[name].views
        sent = [[one["bytes_up"] for one in run[name].rounds] for run in (resumed, whole)]
        assert sent[0] == sent[1]
    for folder in ("whole", "parts"):
        found = json.loads((tmp_path / folder / "results.json").read_text())
        spent = {arm["name"]: arm["privacy"] for arm in found["arms"]}
        # 20 public samples, all of them in each of three rounds; answers are counted once.
        once = randomised_response_epsilon(1.0, 10, 20, 1e-5)
        assert spent["randomised-response"]["most"] == pytest.approx(once, abs=1e-3)
        assert spent["gaussian-labels"]["most"] == pytest.approx(gaussian_epsilon(20**0.5, 1e-5), abs=1e-3)
        # The server counts again in each round.
        assert spent["noisy-votes"]["most"] == pytest.approx(gaussian_epsilon(120**0.5, 1e-5), abs=1e-3)
        assert spent["noisy-votes"]["epsilon"].keys() == {"0", "1", "2"}


def test_clients_spend_in_the_rounds_in_which_they_work() -> None:
    """Also where a reply is lost; and in no other round."""
    arm, run = finished(small(rounds=5, sampling={"fraction": 0.34, "dropout": 0.5}))
    worked = [sum(client in record.clients for record in run.records) for client in range(3)]
    assert sum(worked) == 5
    expected = [gaussian_epsilon(math.sqrt(count) / 4, 1e-5) for count in worked]
    assert spent_epsilons(arm, run.records) == pytest.approx(expected)
    assert planned_epsilons(arm) == pytest.approx(expected)


def test_rounds_without_an_exchange_are_made_up_for() -> None:
    arms = [{"method": "dsfl", "accumulate": 2}]
    arm, run = finished(small(rounds=5, train={"epochs": 2}, arms=arms))
    assert [record.local for record in run.records] == [0, 2, 0, 2, 1]
    every = gaussian_epsilon(math.sqrt(10) / 4, 1e-5)
    assert spent_epsilons(arm, run.records) == pytest.approx([every] * 3) == planned_epsilons(arm)


def test_noise_is_found_for_a_budget_and_written_down(tmp_path: Path) -> None:
    budget = {"kind": "dp-sgd", "epsilon": 3.0, "rate": 0.5}
    compare(parse(small(arms=[{"method": "dsfl"}], privacy=budget), "test"), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "results.json").read_text())["arms"][0]["privacy"]
    assert 2.8 < found["most"] <= 3
    assert found["epsilon"] == dict.fromkeys("012", found["most"])
    assert found["unit"].startswith("one record of one client")
    text = (tmp_path / "run" / "experiment.toml").read_text()
    assert "noise = " in text.split("[[arms]]")[1]
    # With more rounds, the same noise would spend more than the budget.
    (tmp_path / "run" / "experiment.toml").write_text(text.replace("rounds = 2", "rounds = 9"))
    with pytest.raises(ExperimentError, match=r"more than privacy.epsilon = 3"):
        resume(tmp_path / "run")


def test_doctor_says_what_a_run_will_spend_and_what_leaves_a_client() -> None:
    experiment, arm = ready(small())
    (fact,) = [str(one) for one in examine(experiment, arm.task, [arm]) if "dp-sgd" in str(one)]
    assert "after 2 rounds ε = 1.36 at δ = 1e-05" in fact  # two steps at noise 4: the root of 2 over 4
    assert "probs (of the trained model), sampled_round (public)" in fact


def test_hidden_sites_hide_single_clients(tmp_path: Path) -> None:
    run = compare(parse(small(evaluate={"hide_sites": True}), "test"), tmp_path / "run")
    found = json.loads((run.path / "results.json").read_text())["arms"][0]["privacy"]
    assert found["most"] > 0
    assert "epsilon" not in found


def refusal(**tables: Any) -> str:
    _, arm = ready(small(**tables))
    with pytest.raises(Refusal) as raised:
        check_privacy(arm)
    return str(raised.value)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_dp_sgd_is_for_methods_that_send_nothing_beside_the_model(row: Row) -> None:
    arms = [{"method": row.method, **row.settings}]
    _, arm = ready(small(arms=arms, task=small()["task"] | {"limit": 40}))
    beyond = METHODS[row.method].beyond_model
    if row.method == "server-alone":
        assert "do nothing" in refusal(arms=arms)
    elif "start" in row.settings:
        assert "with `start`" in refusal(arms=arms)
    elif beyond is not None:
        assert f"clients of method {row.method} send {beyond}: choose one of local," in refusal(arms=arms)
    else:
        check_privacy(arm)


LOCAL = {"kind": "randomised-response", "each": 1.0}
VOTES = {"kind": "noisy-votes", "noise": 1.0}


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"train": {"loss": "balanced-softmax"}}, "adds the client's class counts"),
        ({"train": {"early_stopping": {"share": 0.3}}}, "early stopping chooses an epoch"),
        ({"arms": [{"method": "fedavg", "accumulate": {"worth": 1.0}}]}, "adaptive `accumulate`"),
        ({"task": {**small()["task"], "own_test_share": 0.2}}, "hold some of their own samples out"),
        ({"privacy": ALL_RECORDS | {"delta": 0.2}}, "δ = 0.2 lets all of one record's data out"),
        ({"privacy": ALL_RECORDS | {"noise": 1e-4}}, "so little noise bounds nothing"),
        (
            {"privacy": ALL_RECORDS | {"epsilon": 0.5}},
            "spend ε = 1.36, more than privacy.epsilon = 0.5",
        ),
        ({"privacy": LOCAL}, "that send votes and nothing else, but those of method dsfl send soft labels"),
        ({"privacy": LOCAL, "arms": [{"method": "voting", "start": "gaussian"}]}, "since it has a `start`"),
        ({"privacy": VOTES}, "nothing but the majority: choose method voting"),
        ({"privacy": VOTES, "arms": [{"method": "voting", "aggregation": "dawid-skene"}]}, "the majority"),
        ({"privacy": VOTES | {"delta": 0.5}, "arms": [{"method": "voting"}]}, "lets one of 3 clients out"),
        (
            {"models": {"clients": ["helpers.odd_models:cumulative"], "server": "mlp-s"}},
            "has batch norm, by which a record changes the others' gradients",
        ),
    ],
)
def test_what_no_noise_covers_is_refused(tables: dict[str, Any], said: str) -> None:
    assert said in refusal(**tables)


def test_sums_of_columns_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,b,label\n" + "".join(f"{n % 7},{n % 5},{'xy'[n % 2]}\n" for n in range(80)))
    task = {"format": "csv", "train": str(file), "label": "label", "table": {"scaling": "sums"}, "clients": 2}
    arms = [{"method": "fedavg"}]
    models = {"clients": ["logistic"], "server": "logistic"}
    assert "clients send sums of their rows, without noise" in refusal(task=task, arms=arms, models=models)


def test_networks_are_refused() -> None:
    with pytest.raises(ExperimentError, match="its noise is drawn from the seed, which the server knows"):
        refuse_privacy_on_network(parse(small(), "test"))
    refuse_privacy_on_network(parse(small(privacy={"kind": "none"}), "test"))


class Twice(Method[Votes, Message, Learner, Learner]):
    """Trains twice in a round, and says that it tells nothing beside its model.

    Exchanged: nothing. Bytes: none.
    """

    name = "twice"
    paper = "none"
    exchanges = "nothing"
    byte_formula = "0"
    beyond_model = None
    uplink = Votes
    ServerState = Learner
    ClientState = Learner
    Settings = NoSettings

    def start_server(self, server: Server) -> Learner:
        return Learner(server.initial_model())

    def start_client(self, client: Client) -> Learner:
        return Learner(client.initial_model())

    def send(self, state: Learner, server: Server, client: int) -> None:
        return None

    def client_step(self, state: Learner, client: Client, received: Message | None) -> tuple[Learner, Votes]:
        model, optimizer = state.restore(client)
        for _ in range(2):
            train_private(model, optimizer, client, private_loss(client, model))
        return state.after(model, optimizer), Votes(torch.zeros(0, client.classes), client.round)

    def server_step(self, state: Learner, server: Server, replies: Iterable[Reply[Votes]]) -> Learner:
        return state


def test_a_method_cannot_train_for_longer_than_is_counted() -> None:
    experiment, arm = ready(small(arms=[{"method": f"{__name__}:Twice"}]))
    with (
        SerialExecutor(experiment, arm.task) as executor,
        pytest.raises(TrainingError, match="counts 1: it must"),
    ):
        play_round(start_run(arm), arm, executor)


def test_no_two_arms_have_the_same_noise() -> None:
    """Else one subtraction would take it out of both."""
    wider = {**ALL_RECORDS, "noise": 8.0}
    arms = [{"name": f"{factor}", "method": "fedavg", "privacy": wider} for factor in ("one", "two")]
    _, (one, two) = prepare(parse(small(arms=arms, rounds=1), "test"))
    with SerialExecutor(parse(small(arms=arms, rounds=1), "test"), one.task) as executor:
        executor._arms = {arm.name: arm for arm in (one, two)}
        first, second = (finish(arm, executor).server.model.weights for arm in (one, two))
    assert not torch.equal(first, second)


def test_the_round_in_which_an_arm_failed_counts() -> None:
    arm, run = finished(small(rounds=3))
    spent = spent_epsilons(arm, run.records)
    assert spent_epsilons(arm, run.records[:2], failed_round=3) == pytest.approx(spent)
    assert max(spent_epsilons(arm, run.records[:2])) < min(spent)


MIXING = """
from torch import nn


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.layer(x - x.mean(dim=0))


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 10)

    def forward(self, x):
        return self.layer(x.reshape(-1, 16)).reshape(len(x), -1, 10).mean(dim=1)


def centred(signature):
    return Centred()


def patches(signature):
    return Patches()
"""


def test_models_in_which_records_are_not_apart_are_not_trained_with_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mixing_nets.py").write_text(MIXING)
    monkeypatch.syspath_prepend(str(tmp_path))
    models = {"clients": ["mixing_nets:centred"], "server": "mixing_nets:centred"}
    _, arm = ready(small(models=models))
    with pytest.raises(Refusal, match="answers otherwise to a record if the others in its batch are others"):
        check_privacy(arm)
    models = {"clients": ["mixing_nets:patches"], "server": "mixing_nets:patches"}
    with pytest.raises(TrainingError, match=r"a layer takes \d+ rows where a batch has \d+ records"):
        finished(small(models=models))
