"""Several clients at one SuperNode: the same bits, one message for all, and no more trust than before."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedistill.cli import flower
from fedistill.config.schema import Experiment
from fedistill.config.toml import to_toml
from fedistill.errors import ExperimentError, RuntimeFailure
from fedistill.experiment.results import ResultsJson
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import run_experiment
from fedistill.flower import local_trial
from fedistill.flower.node_config import client_numbers
from fedistill.flower.processes import TrialNetwork
from helpers.flower_trial import Watch, at_sites, experiment, frames, in_process, site_file, what_is_kept

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Flower uses what its libraries will drop
    from flwr.app import Message, RecordDict

    from fedistill.flower import node_registry
    from fedistill.flower.node_client import NodeClient
    from fedistill.flower.serde import Answer, Order, Reply, open_reply, seal_reply
    from helpers.flower_desk import Desk, play


pytestmark = pytest.mark.usefixtures("app")

FLOWER = {"wait": 30, "deadline": 60, "quorum": 0.5, "clients_per_node": 3}
CONFIGS: list[dict[str, Any]] = [{"partition-ids": "0-1, 3"}, {"partition-id": 2}]
TASK = {"name": "digits", "clients": 4, "limit": 240, "public": 60}


def asked_for(arm: dict[str, Any], **changes: Any) -> Experiment:
    return experiment(**{"rounds": 2, "task": TASK, "arms": [arm], "flower": FLOWER, **changes})


ARMS: tuple[dict[str, Any], ...] = (
    {"method": "voting"},
    {"method": "fedavg", "codec": {"up": "qsgd", "down": "fp32"}},
    {"method": "scarlet", "samples": 20},
    {"method": "dsfl", "secure_sums": {"threshold": 0.7}},
)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm["method"])
def test_it_ends_in_the_same_bits_with_a_message_for_each_node(tmp_path: Path, arm: dict[str, Any]) -> None:
    asked = asked_for(arm)
    in_process(asked, tmp_path / "expected")
    desk = Desk(asked, tmp_path, CONFIGS)
    play(desk, asked, tmp_path / "run")
    found, expected = (RunFolder(tmp_path / name).records(arm["method"]) for name in ("run", "expected"))
    assert [record.missing for record in found] == [{}, {}]
    assert [record.views for record in found] == [record.views for record in expected]
    if "secure_sums" not in arm:  # whose secrets are drawn at the sites
        assert frames(tmp_path / "run") == frames(tmp_path / "expected")
    server, shared, clients = what_is_kept(tmp_path / "expected")
    assert what_is_kept(tmp_path / "run") == (server, shared, {})
    assert at_sites(tmp_path.glob("node-*"), round=2) == clients
    asked_of = [(node, sorted(order.frames)) for node, kind, order in desk.taken if kind == "train"]
    assert set(map(str, asked_of)) == {"(10, [0, 1, 3])", "(11, [2])"}
    if "secure_sums" not in arm:
        assert len(asked_of) == 2 * 2


def test_one_that_fails_does_so_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asked_for({"method": "dsfl"})
    work = NodeClient.work

    def fails(client: NodeClient, round: int, frame: bytes) -> Answer:
        if client._client == 1 and round == 1:
            raise ZeroDivisionError
        return work(client, round, frame)

    monkeypatch.setattr(NodeClient, "work", fails)
    play(Desk(asked, tmp_path, CONFIGS), asked, tmp_path / "run")
    records = RunFolder(tmp_path / "run").records("dsfl")
    assert [record.missing for record in records] == [{"1": "ZeroDivisionError; its log says where"}, {}]


def changing(change: Callable[[dict[int, Answer]], dict[int, Answer]]) -> Any:
    """Change the answers of node 10 to its work."""

    def changed(node: int, order: Order, reply: Message) -> Message:
        if node != 10 or not order.round:
            return reply
        said = open_reply(reply)
        to_server = Message(RecordDict(), dst_node_id=1, message_type="train")
        return seal_reply(Reply(change(dict(said.answers)), said.words), to_server)

    return changed


def test_who_is_left_out_of_a_reply_is_missing_and_who_was_not_asked_is_not_heard(tmp_path: Path) -> None:
    asked = asked_for({"method": "dsfl"}, rounds=1)
    desk = Desk(asked, tmp_path, CONFIGS)
    play(desk, asked, tmp_path / "honest")

    def another(answers: dict[int, Answer]) -> dict[int, Answer]:
        return {0: answers[0], 1: answers[1], 2: Answer(bytes(100_000), answers[3].words)}

    desk.change = changing(another)
    play(desk, asked, tmp_path / "run")
    honest, changed = (RunFolder(tmp_path / name).records("dsfl")[0] for name in ("honest", "run"))
    assert changed.missing == {"3": "the reply of its node says nothing of it"}
    sent = {(e.client, e.bytes) for e in honest.traffic if e.direction == "up"}
    assert {(e.client, e.bytes) for e in changed.traffic if e.direction == "up"} == {
        (client, size) for client, size in sent if client != 3
    }
    assert changed.carried["up"] - honest.carried["up"] > 100_000 - 2_000


def test_a_node_may_be_as_many_clients_as_the_server_says(tmp_path: Path) -> None:
    asked = asked_for({"method": "dsfl"}, flower={**FLOWER, "clients_per_node": 2, "wait": 8})
    with pytest.raises(RuntimeFailure) as failed:
        play(Desk(asked, tmp_path, CONFIGS), asked, tmp_path / "run")
    said = str(failed.value)
    assert said.startswith("1 of 4 clients are connected after 8 s, but flower.quorum asks for 2")
    assert "node 10: it says that it is 3 clients, but one node may be 2 by flower.clients_per_node" in said


def test_none_of_its_clients_may_be_anothers(tmp_path: Path) -> None:
    asked = asked_for({"method": "dsfl"}, flower={**FLOWER, "wait": 8, "quorum": 1.0})
    configs = [{"partition-ids": "0-1"}, {"partition-ids": "1-3"}]
    with pytest.raises(RuntimeFailure) as failed:
        play(Desk(asked, tmp_path, configs), asked, tmp_path / "run")
    # Whichever of the two answered first is client 1.
    assert re.search(r"node 1[01]: client 1 is node 1[01] in this run", str(failed.value))


@pytest.mark.parametrize("clients", [[], 3, [0, 4], [0, -1], [0, True], ["0"], [0.0], None])
def test_what_are_no_clients_is_said(tmp_path: Path, clients: Any) -> None:
    registry = node_registry.NodeRegistry(object(), "5e551", 4, 4, "print")  # type: ignore[arg-type] # unused
    why = registry._stranger(10, Reply(words={"clients": clients, "fingerprint": "print"}))
    assert why.startswith("it says that it is client ")
    assert registry._stranger(10, Reply(words={"clients": [0, 3], "fingerprint": "print"})) == ""


def test_node_configs_name_clients_by_ranges() -> None:
    assert client_numbers({"partition-ids": "7, 0-2,5-5"}, 8) == [0, 1, 2, 5, 7]
    assert client_numbers({"partition-ids": "3"}, 4) == [3]
    for given in ("0-8", "8", "3-1", "", "a", "0-", "-1", "0;1", "0 1", 3, 1.0, "99999999999"):
        with pytest.raises(ExperimentError, match=r"partition-ids = .* must name whole numbers from 0 to 7"):
            client_numbers({"partition-ids": given}, 8)
    with pytest.raises(ExperimentError, match="give partition-id or partition-ids, not both"):
        client_numbers({"partition-id": 0, "partition-ids": "0-1"}, 8)


def test_data_of_ones_own_are_those_of_one_client(tmp_path: Path) -> None:
    site_file(tmp_path / "mine.parquet", ["7", "3"])
    asked = asked_for({"method": "dsfl"}, flower={**FLOWER, "wait": 8})
    own = {"partition-ids": "0-1", "train": str(tmp_path / "mine.parquet")}
    with pytest.raises(RuntimeFailure, match="`train` is the data of one client, but partition-ids names 2"):
        play(Desk(asked, tmp_path, [own]), asked, tmp_path / "run")


@pytest.mark.parametrize(("clients", "nodes"), [(10, 3), (4, 4), (7, 2), (1_000, 3)])
def test_a_trial_divides_its_clients_as_evenly_as_can_be(tmp_path: Path, clients: int, nodes: int) -> None:
    network = TrialNetwork(tmp_path, nodes, clients=clients)
    held = []
    for node in range(nodes):
        config = network.node_config(node).split(" state")[0]
        key, _, value = config.partition("=")
        given: Any = int(value) if key == "partition-id" else value.strip('"')
        held.append(client_numbers({key: given}, clients))
    assert [client for clients_of_one in held for client in clients_of_one] == list(range(clients))
    assert max(map(len, held)) - min(map(len, held)) <= 1


def test_a_trial_has_the_nodes_that_its_clients_need_and_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their states are at nodes: with another number of nodes they would not be found again."""
    played: list[int] = []

    def play(one: Experiment, out: Path, watcher: Any) -> ResultsJson:
        played.append(len(list((out / "flower" / "keys").glob("node-*.pub"))))
        if len(played) == 1:
            RunFolder.create(out, one, "test").session.write_text("5e551")
            raise RuntimeFailure("the SuperLink ended")
        return run_experiment(one, tmp_path / "elsewhere", "test", watcher)

    monkeypatch.setattr(local_trial, "_play", play)
    asked, out = asked_for({"method": "dsfl"}, rounds=1), tmp_path / "run"
    with pytest.raises(RuntimeFailure, match="the SuperLink ended"):
        local_trial.run_trial(asked, out, "test", Watch())
    file = out / "experiment.toml"
    written = file.read_text()
    file.write_text(written.replace("clients_per_node = 3", "clients_per_node = 1"))
    with pytest.raises(
        ExperimentError, match=r"the states of clients at 2 nodes: set flower\.clients_per_node"
    ):
        local_trial.resume_trial(out, Watch())
    file.write_text(written)
    local_trial.resume_trial(out, Watch())
    assert played == [2, 2]


def test_the_command_asks_for_nodes_and_each_is_several_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Experiment] = []
    monkeypatch.setattr(local_trial, "run_trial", lambda experiment, *_: asked.append(experiment))
    monkeypatch.setattr(flower, "follow", lambda folder, run, *_: run(Watch()))
    file = tmp_path / "experiment.toml"
    file.write_text(to_toml(asked_for({"method": "dsfl"})))
    for given in ([], ["--nodes", "2"], ["--nodes", "2", "--set", "flower.clients_per_node=5"]):
        command = ["up", str(file), "--out", str(tmp_path / "run"), *given]
        assert CliRunner().invoke(flower.app, command).exit_code == 0
    assert [one.task.clients for one in asked] == [4, 6, 10]
