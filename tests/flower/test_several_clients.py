"""Several clients at one SuperNode: the same bits, one message for all, and no more trust than before."""

import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fedistill.cli import flower
from fedistill.config.schema import Experiment
from fedistill.config.toml import to_toml
from fedistill.data.build import build_task
from fedistill.errors import ExperimentError, RuntimeFailure
from fedistill.experiment.preflight import examine
from fedistill.experiment.results import ResultsJson
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare, run_experiment
from fedistill.federation.history import RoundRecord
from fedistill.flower import local_trial
from fedistill.flower.app_template import write_app
from fedistill.flower.node_config import client_numbers
from fedistill.flower.processes import TrialNetwork
from helpers.flower_trial import Watch, at_sites, experiment, frames, in_process, site_file, what_is_kept

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Flower uses what its libraries will drop
    from flwr.app import Message, RecordDict

    from fedistill.flower import node_registry
    from fedistill.flower.executor import FlowerExecutor
    from fedistill.flower.node import Node
    from fedistill.flower.node_client import NodeClient
    from fedistill.flower.serde import Answer, Order, Reply, seal_reply
    from helpers.flower_desk import Desk, opened, play


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
        said = opened(reply)
        to_server = Message(RecordDict(), dst_node_id=1, message_type="train")
        return seal_reply(Reply(change(dict(said.answers)), said.words), to_server)

    return changed


def test_who_is_left_out_of_a_reply_is_missing(tmp_path: Path) -> None:
    asked = asked_for({"method": "dsfl"}, rounds=1)
    desk = Desk(asked, tmp_path, CONFIGS)
    desk.change = changing(lambda answers: {0: answers[0], 1: answers[1]})
    play(desk, asked, tmp_path / "run")
    (record,) = RunFolder(tmp_path / "run").records("dsfl")
    assert record.missing == {"3": "the reply of its node says nothing of it"}
    assert {e.client for e in record.traffic if e.direction == "up"} == {0, 1, 2}


def test_a_reply_for_clients_that_were_not_asked_is_refused_and_its_bytes_count_once(tmp_path: Path) -> None:
    asked = asked_for({"method": "dsfl"}, rounds=1, flower={**FLOWER, "quorum": 0.25})
    desk = Desk(asked, tmp_path, CONFIGS)
    play(desk, asked, tmp_path / "honest")
    long = bytes(100_000)
    desk.change = changing(lambda answers: dict.fromkeys((0, 1, 2), Answer(long, answers[3].words)))
    play(desk, asked, tmp_path / "run")
    honest, changed = (RunFolder(tmp_path / name).records("dsfl")[0] for name in ("honest", "run"))
    why = "a reply answers for clients that were not asked"
    assert changed.missing == {"0": why, "1": why, "3": why}
    assert 0 < changed.carried["up"] - honest.carried["up"] < len(long) + 2_000


def watched(desk: Desk, asked: Experiment, out: Path, watch: Watch) -> list[RoundRecord]:
    """Play with somebody to look on; return the rounds of the only arm."""
    grid: Any = desk
    out.mkdir()
    RunFolder(out).session.write_text("5e551")
    run_experiment(asked, out, "test", watch, lambda one, task: FlowerExecutor(grid, one, task, "5e551"))
    return RunFolder(out).records(asked.arms[0].name)


def test_a_node_that_does_not_reply_in_time_leaves_all_its_clients_out(tmp_path: Path) -> None:
    asked = asked_for({"method": "dsfl"}, flower={**FLOWER, "deadline": 3, "quorum": 0.25})
    desk, whole = Desk(asked, tmp_path, CONFIGS), threading.Event()

    def slow(node: int, order: Order, reply: Message) -> Message:
        if node == 10 and order.round == 1:
            whole.wait(100)
        return reply

    desk.change = slow
    first, second = watched(desk, asked, tmp_path / "run", Watch(lambda round: whole.set()))
    assert first.missing == dict.fromkeys("013", "no reply within 3 s")
    assert second.missing == {}
    assert second.carried["late"] == 1


@pytest.mark.parametrize("said", [{"cost": [10**400, 10**400]}, {"counts": [[]]}, {"error": "\ud800"}])
def test_absurd_values_of_one_are_no_reply(tmp_path: Path, said: dict[str, Any]) -> None:
    """Sums of such numbers could not be written any more once all rounds were played."""
    asked = asked_for({"method": "dsfl"}, rounds=1, flower={**FLOWER, "quorum": 0.25})
    desk = Desk(asked, tmp_path, CONFIGS)
    desk.change = changing(lambda answers: {**answers, 1: Answer(answers[1].frame, said)})
    play(desk, asked, tmp_path / "run")
    (record,) = RunFolder(tmp_path / "run").records("dsfl")
    assert record.missing.keys() == {"0", "1", "3"}
    assert len(set(record.missing.values())) == 1


def test_a_node_may_come_back_as_itself_alone(tmp_path: Path) -> None:
    """A node that took other numbers each time it came back would end as all clients."""
    asked = asked_for({"method": "dsfl"}, rounds=3, flower={**FLOWER, "wait": 3, "quorum": 0.25})
    desk = Desk(asked, tmp_path, [{"partition-ids": "0-1"}, {"partition-id": 2}])
    before = desk.nodes[10]

    def away(round: int) -> None:
        if round == 1:
            del desk.nodes[10]
        else:
            desk.nodes[10] = {**before, "partition-ids": "0, 2-3"}

    *_, third = watched(desk, asked, tmp_path / "run", Watch(away))
    assert third.missing.keys() == {"0", "1", "3"}
    why = "it says that it is client 0, 2, 3 after 0, 1, but one node may be 3 of them in a run"
    assert why in third.missing["3"]


def test_a_node_may_be_as_many_clients_as_the_server_says(tmp_path: Path) -> None:
    asked = asked_for({"method": "dsfl"}, flower={**FLOWER, "clients_per_node": 2, "wait": 8})
    with pytest.raises(RuntimeFailure) as failed:
        play(Desk(asked, tmp_path, CONFIGS), asked, tmp_path / "run")
    said = str(failed.value)
    assert said.startswith("1 of 4 clients are connected after 8 s, but flower.quorum asks for 2")
    assert (
        "it says that it is client 0, 1, 3, but one node may be 2 of them in a run (flower.clients_per"
        in said
    )


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


def test_a_node_that_starts_again_as_others_builds_their_data(tmp_path: Path) -> None:
    """Two nodes may have one folder, and what they have built for a client may be there from before."""
    asked = asked_for({"method": "dsfl"})
    whole = build_task(asked.task, asked.seed)
    run = {"experiment": to_toml(asked)}
    for given, clients in (("0-1", [0, 1]), ("0, 3", [0, 3]), ("1-2", [1, 2]), ("0-1", [0, 1])):
        node = Node(run, {"state": str(tmp_path), "partition-ids": given}, "5e551")
        assert node.fingerprint(whole.fingerprint()) == whole.fingerprint()
        held = [len(data) for data in node.task.clients]
        assert held == [len(data) if at in clients else 0 for at, data in enumerate(whole.clients)]
        assert torch.equal(node.task.clients[clients[1]].samples, whole.clients[clients[1]].samples)
        with pytest.raises(ExperimentError, match="an order is for client 5, which this node is not"):
            node.client(5, node.arm("dsfl"))


def test_a_number_beyond_a_natural_partition_is_refused_once_data_are_read(
    tmp_path: Path,
) -> None:
    rows = [f"{place},{'ill' if place % 3 else 'well'},{'abc'[place % 3]}" for place in range(60)]
    (tmp_path / "all.csv").write_text("\n".join(["age,label,site", *rows]) + "\n")
    task = {
        "format": "csv",
        "train": str(tmp_path / "all.csv"),
        "public": 12,
        "table": {"numeric": ["age"]},
        "partition": "natural(column=site)",
    }
    run = {"experiment": to_toml(asked_for({"method": "dsfl"}, task=task))}
    node = Node(run, {"state": str(tmp_path), "partition-ids": "1-3"}, "5e551")
    with pytest.raises(ExperimentError, match="partition-ids = '1-3' must name whole numbers from 0 to 2"):
        node.fingerprint("")


def test_the_readme_of_an_app_says_how_a_node_names_several(tmp_path: Path) -> None:
    write_app(asked_for({"method": "dsfl"}), tmp_path / "several", tmp_path, "test")
    said = (tmp_path / "several" / "README.md").read_text()
    assert "--nodes 2 " in said
    assert "client's number, below 4" in said
    assert '`partition-ids="0-2"`' in said
    write_app(asked_for({"method": "dsfl"}, flower={}), tmp_path / "one", tmp_path, "test")
    said = (tmp_path / "one" / "README.md").read_text()
    assert "--nodes 4 " in said
    assert "partition-ids" not in said


def test_a_node_that_could_unmask_secure_sums_is_warned_of() -> None:
    arm = {"method": "voting", "secure_sums": {"threshold": 0.7}}
    for most, warned in ((1, False), (2, False), (3, True)):
        asked = asked_for(arm, flower={"clients_per_node": most})
        findings = examine(asked, *prepare(asked))
        assert any("could unmask" in one.what for one in findings) == warned
