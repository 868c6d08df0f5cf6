"""The server's and the nodes' parts together, with messages handed over in memory in place of a network."""

import json
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from google.protobuf.message import DecodeError
from safetensors.torch import load_file

from fedistill import load_model
from fedistill.communication.protocol import frame as frame_format
from fedistill.communication.varint import varint
from fedistill.config.schema import Experiment
from fedistill.config.toml import to_toml
from fedistill.data.build import build_task
from fedistill.errors import ExperimentError, RuntimeFailure
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import resume_experiment, run_experiment
from fedistill.flower import event_tail as news_of
from fedistill.flower import local_trial
from helpers.flower_trial import (
    CLIENTS,
    Watch,
    at_sites,
    experiment,
    frames,
    in_process,
    site_file,
    what_is_kept,
)
from helpers.own_training import EVERYTHING, OF_ONES_OWN

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Flower uses what its libraries will drop
    from flwr.app import Array, Message
    from flwr.app.message.arraychunk import ArrayChunk
    from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body

    from fedistill.flower import executor, node_registry
    from fedistill.flower.node import Node
    from fedistill.flower.serde import Answer, Order
    from helpers.flower_desk import Desk, frame_of, play, with_answers


pytestmark = pytest.mark.usefixtures("app")


def watched(desk: Desk, asked: Experiment, out: Path, watch: Watch) -> None:
    """As `play`, with somebody to look on."""
    grid: Any = desk
    out.mkdir()
    RunFolder(out).session.write_text("5e551")
    run_experiment(
        asked, out, "test", watch, lambda config, task: executor.FlowerExecutor(grid, config, task, "5e551")
    )


def models_of(folder: Path) -> dict[str, bytes]:
    """The server's models, by arm and name; clients' own never come to it."""
    return {
        path.parents[1].name: path.read_bytes()
        for path in (folder / "models").glob("*/server/model.safetensors")
    }


ADAPTIVE = {"name": "dadaquant", "first": 16, "last": 64}
ARMS: dict[str, dict[str, Any]] = {
    "server-alone": {},
    "fedgkt": {},
    "fedavg": {"codec": {"up": ADAPTIVE, "down": "fp32"}},
    "fedgems": {},
    "fd": {},
    "fedproto": {},
    "fedgen": {},
    "comet": {},
    "fed-et": {},
    "fedkd": {},
    "local": {},
    "voting": {"start": "gaussian(width=16)"},
    "ridge": {"features": "cnn-s", "width": 12, "distill_epochs": 2},
    "dsfl": {"secure_sums": True},
}


def test_images_large_enough_for_onednns_layout_end_in_the_same_bits(tmp_path: Path) -> None:
    task = {"name": "digits", "clients": CLIENTS, "limit": 240, "image_size": [28, 28]}
    cnn = {"clients": ["cnn-s"], "server": "cnn-s"}
    asked = experiment(rounds=1, task=task, models=cnn, arms=[{"method": "fedavg"}])
    in_process(asked, tmp_path / "expected")
    play(Desk(asked, tmp_path), asked, tmp_path / "run")
    assert frames(tmp_path / "run") == frames(tmp_path / "expected")
    assert models_of(tmp_path / "run") == models_of(tmp_path / "expected")


@pytest.mark.parametrize("method", ARMS)
def test_methods_end_in_the_same_bits_as_in_one_process(tmp_path: Path, method: str) -> None:
    task = {"name": "digits", "clients": CLIENTS, "limit": 240, "public": 60}
    task["partition"] = {"kind": "dirichlet", "alpha": 0.5}
    asked = experiment(rounds=2, task=task, arms=[{"method": method, **ARMS[method]}])
    results = in_process(asked, tmp_path / "expected")
    play(Desk(asked, tmp_path), asked, tmp_path / "run")
    assert frames(tmp_path / "run") == frames(tmp_path / "expected")
    assert models_of(tmp_path / "run") == models_of(tmp_path / "expected")
    server_state, shared_states, clients = what_is_kept(tmp_path / "expected")
    assert what_is_kept(tmp_path / "run") == (server_state, shared_states, {})
    assert at_sites(tmp_path.glob("node-*"), round=2) == clients
    # Each site has its own newest model, as the folder of one process has it.
    for client in clients:
        expected_model = tmp_path / "expected" / "models" / method / f"client-{client}"
        saved = [*(tmp_path / f"node-{client}").glob("*/client-*/models/0")]
        assert expected_model.exists() == bool(saved)
        for path in saved:
            same_tensors(path / "model.safetensors", expected_model / "model.safetensors")
            origin = load_model(path).description.origin
            assert (origin.client, origin.round, origin.rounds) == (client, 2, 2)
    costs = [
        [(record.multiply_adds, record.memory) for record in RunFolder(tmp_path / name).records(method)]
        for name in ("run", "expected")
    ]
    assert costs[0] == costs[1]
    found = [record.views for record in RunFolder(tmp_path / "run").records(method)]
    expected = [record["views"] for record in results["arms"][0]["rounds"]]
    if method == "fedgkt":  # the edge models that its view is made of stay at their sites
        assert {view for views in expected for view in views} >= {"server@global"}
        expected = [
            {view: value for view, value in views.items() if view != "server@global"} for views in expected
        ]
    assert found == expected


@pytest.mark.parametrize(
    ("method", "train"), [("fml", EVERYTHING), ("dsfl", OF_ONES_OWN)], ids=["fml", "dsfl"]
)
def test_all_settings_of_training_end_in_the_same_bits(
    tmp_path: Path, method: str, train: dict[str, Any]
) -> None:
    asked = experiment(rounds=2, train=train, arms=[{"method": method}])
    in_process(asked, tmp_path / "expected")
    nodes = [{"partition-id": number, "modules": "helpers"} for number in range(CLIENTS)]
    play(Desk(asked, tmp_path, nodes), asked, tmp_path / "run")
    assert frames(tmp_path / "run") == frames(tmp_path / "expected")
    assert models_of(tmp_path / "run") == models_of(tmp_path / "expected")


def test_from_a_saved_model_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    """With a codec of differences to it, and a method whose clients begin with it."""
    in_process(experiment(rounds=1, arms=[{"method": "fedavg"}]), tmp_path / "first")
    models = {"clients": ["mlp-s"], "server": "mlp-s", "start": str(tmp_path / "first")}
    arms = [{"method": "fedavg", "codec": "stc"}, {"method": "random-mask"}]
    asked = experiment(rounds=2, models=models, arms=arms)
    in_process(asked, tmp_path / "expected")
    play(Desk(asked, tmp_path), asked, tmp_path / "run")
    assert frames(tmp_path / "run") == frames(tmp_path / "expected")
    assert models_of(tmp_path / "run") == models_of(tmp_path / "expected")


def same_tensors(one: Path, other: Path) -> None:
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_a_node_that_is_not_a_client_is_named_with_its_reason(tmp_path: Path) -> None:
    asked = experiment(flower={"wait": 8, "deadline": 60, "quorum": 1.0})
    desk = Desk(asked, tmp_path, [{"partition-id": 0}, {"partition-id": 7}, {"partition-id": 0}])
    desk.silent.add(13)
    desk.nodes[13] = {"partition-id": 1}
    with pytest.raises(RuntimeFailure) as failed:
        play(desk, asked, tmp_path / "run")
    said = str(failed.value)
    assert said.startswith("1 of 3 clients are connected after 8 s, but flower.quorum asks for 3 (node 1")
    assert "node 11: node config: partition-id = 7 must be a whole number from 0 to 2" in said
    # Whichever of the two answered first is the client.
    assert re.search(
        "node 12: client 0 is node 10 in this run|node 10: client 0 is node 12 in this run", said
    )
    assert "node 13: it has not said who it is" in said
    # Asked once each: every question starts a process at the node.
    assert sorted(node for node, _, _ in desk.taken) == [10, 11, 12, 13]


def test_a_site_that_was_refused_gets_in_once_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_registry, "_HELLO_SECONDS", 0.3)
    asked = experiment(rounds=1, flower={"wait": 30, "deadline": 60, "quorum": 1.0})
    desk = Desk(asked, tmp_path)
    built = Node._build
    times: list[int] = []

    def with_other_data_at_first(node: Node) -> None:
        built(node)
        if node.clients == [2] and not times:
            times.append(1)
            (node.folder / "built.json").write_text(
                json.dumps({"clients": [2], "source": None, "fingerprint": "other"})
            )

    monkeypatch.setattr(Node, "_build", with_other_data_at_first)
    play(desk, asked, tmp_path / "run")
    # A slow answer is asked for again, so that there may be more questions than two.
    kinds = [kind for node, kind, _ in desk.taken if node == 12]
    assert set(kinds[:-1]) == {"query"}
    assert len(kinds) >= 3
    assert kinds[-1] == "train"
    assert RunFolder(tmp_path / "run").records("dsfl")[0].missing == {}


def test_nobody_takes_the_number_of_a_client_that_is_away(tmp_path: Path) -> None:
    asked = experiment(rounds=2, flower={"wait": 30, "deadline": 60, "quorum": 0.6})
    desk = Desk(asked, tmp_path)

    class Swap(Watch):
        def round(self, name: str, record: Any) -> None:
            if record.round == 1:
                desk.nodes[99] = {**desk.nodes.pop(11), "state": str(tmp_path / "thief")}

    watched(desk, asked, tmp_path / "run", Swap())
    missing = RunFolder(tmp_path / "run").records("dsfl")[1].missing
    assert set(missing) == {"1"}
    assert missing["1"].startswith("it is not connected (node 99: client 1 is node 11 in this run")
    assert not (tmp_path / "thief" / "5e551" / "client-1" / "0").exists()


def answered(change: Callable[[Answer], Answer]) -> Callable[[int, Order, Message], Message]:
    """Change what node 11 replies to its work."""

    def changed(node: int, order: Order, reply: Message) -> Message:
        if node != 11 or order.round == 0:
            return reply
        return with_answers(reply, lambda client, answer: change(answer))

    return changed


def test_a_site_may_join_in_a_later_round(tmp_path: Path) -> None:
    """Nobody waits for it after the start, and it begins with the model that the others have reached."""
    flower = {"wait": 8, "deadline": 60, "quorum": 0.6}
    asked = experiment(rounds=3, arms=[{"method": "fedavg"}], flower=flower)
    desk = Desk(asked, tmp_path)
    late = desk.nodes.pop(12)

    class Join(Watch):
        def round(self, name: str, record: Any) -> None:
            super().round(name, record)
            if record.round == 2:
                desk.nodes[12] = late

    watched(desk, asked, tmp_path / "run", watch := Join())
    assert watch.failures == []
    assert [list(watch.records[round].missing) for round in (1, 2, 3)] == [["2"], ["2"], []]
    assert watch.records[1].missing["2"].startswith("it is not connected")
    orders = [(node, order) for node, kind, order in desk.taken if kind == "train"]
    assert [order.round for node, order in orders if node == 12] == [3]
    last = {node: frame_of(order) for node, order in orders if order.round == 3}
    assert last[12] == last[10]


@pytest.mark.parametrize("counts", [[10**6] * 10, [-1] * 10, [1] * 9, [True] * 10, "many"])
def test_right_answers_beyond_the_test_set_are_not_counted(tmp_path: Path, counts: Any) -> None:
    asked = experiment(rounds=1, arms=[{"method": "scarlet", "samples": 40}])
    expected = in_process(asked, tmp_path / "expected")["arms"][0]["rounds"][0]["views"]
    desk = Desk(asked, tmp_path)
    desk.change = answered(lambda answer: Answer(answer.frame, {**answer.words, "counts": counts}))
    play(desk, asked, tmp_path / "run")
    (record,) = RunFolder(tmp_path / "run").records("scarlet")
    # Asked for by itself, the node says the truth.
    assert record.views == expected
    assert [kind for node, kind, _ in desk.taken if node == 11] == ["query", "train", "evaluate"]


@pytest.mark.parametrize("cost", [[-1, 5], [5], [1.5, 2.5], [True, True], "little", 7])
def test_a_cost_that_is_none_counts_as_nothing(tmp_path: Path, cost: Any) -> None:
    asked = experiment(rounds=1, arms=[{"method": "fedavg"}])
    desk = Desk(asked, tmp_path)
    desk.change = answered(lambda answer: Answer(answer.frame, {**answer.words, "cost": cost}))
    play(desk, asked, tmp_path / "run")
    (record,) = RunFolder(tmp_path / "run").records("fedavg")
    assert record.multiply_adds is not None
    assert record.memory is not None
    assert [bool(count) for count in record.multiply_adds] == [True, False, True]
    assert [bool(count) for count in record.memory] == [True, False, True]


@pytest.mark.parametrize("error", [KeyError("no such class"), DecodeError("no such class"), RecursionError()])
def test_a_reply_that_flower_cannot_put_together_is_of_its_client_alone(
    tmp_path: Path, error: Exception
) -> None:
    asked = experiment(rounds=1, flower={"wait": 30, "deadline": 60, "quorum": 0.6})

    def broken(node: int, order: Order, reply: Message) -> Message:
        if node == 11 and order.round:
            raise error
        return reply

    desk = Desk(asked, tmp_path)
    desk.change = broken
    play(desk, asked, tmp_path / "run")
    (record,) = RunFolder(tmp_path / "run").records("dsfl")
    assert set(record.missing) == {"1"}
    assert record.missing["1"].startswith(f"its reply cannot be read: {type(error).__name__}: {error}")


def test_a_superlink_that_is_lost_is_no_fault_of_a_client(tmp_path: Path) -> None:
    asked = experiment(rounds=1)
    desk = Desk(asked, tmp_path)

    def lost(node: int, order: Order, reply: Message) -> Message:
        if order.round:
            raise httpx.ConnectError("no route")
        return reply

    desk.change = lost
    with pytest.raises(RuntimeFailure, match="the SuperLink does not answer: ConnectError: no route"):
        play(desk, asked, tmp_path / "run")


def test_a_reply_whose_parts_do_not_come_is_not_waited_for(tmp_path: Path) -> None:
    """Flower names a reply when its head is there, and would wait for the rest beyond any deadline."""
    asked = experiment(rounds=3, flower={"wait": 60, "deadline": 10, "quorum": 0.6})
    desk = Desk(asked, tmp_path)
    whole = threading.Event()

    def slow(node: int, order: Order, reply: Message) -> Message:
        if node == 11 and order.round == 1:
            whole.wait(100)
        return reply

    desk.change = slow
    watched(desk, asked, tmp_path / "run", Watch(lambda round: whole.set()))
    records = RunFolder(tmp_path / "run").records("dsfl")
    assert [record.missing for record in records] == [{"1": "no reply within 10 s"}, {}, {}]
    assert sum(record.carried["late"] for record in records) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what a process holds")
def test_a_reply_that_names_a_part_a_thousand_times_takes_no_memory(tmp_path: Path) -> None:
    """A megabyte that is named 40,000 times in an array would be 40 GB."""
    asked = experiment(rounds=1, flower={"wait": 60, "deadline": 60, "quorum": 0.6})
    desk = Desk(asked, tmp_path)

    def bomb(node: int, order: Order, reply: Message) -> Message:
        if node == 11 and order.round:
            part = ArrayChunk(bytes(1_000_000))
            body = {"shape": [1], "dtype": "uint8", "stype": "bytes", "arraychunk_ids": [0] * 40_000}
            array = Array(dtype="uint8", shape=(1,), stype="bytes", data=part.data)
            head = add_header_to_object_body(json.dumps(body).encode(), array)
            array = Array.inflate(head, {part.object_id: part})
        return reply

    desk.change = bomb
    play(desk, asked, tmp_path / "run")
    (record,) = RunFolder(tmp_path / "run").records("dsfl")
    assert record.missing["1"].startswith("its reply cannot be read: MemoryError")


@pytest.mark.parametrize("samples", [0, (1 << 40) + 1])
def test_weights_of_impossible_samples_are_of_their_client_alone(tmp_path: Path, samples: int) -> None:
    """Of none they would make a mean of nothing, of too many the mean would be theirs."""
    asked = experiment(rounds=1, arms=[{"method": "fedavg"}])
    desk = Desk(asked, tmp_path)

    def claim(answer: Answer) -> Answer:
        frame = frame_format.decode(answer.frame)
        values = frame.sections[0]
        return Answer(frame_format.encode(replace(frame, sections=(values, varint(samples)))), answer.words)

    desk.change = answered(claim)
    play(desk, asked, tmp_path / "run")
    (record,) = RunFolder(tmp_path / "run").records("fedavg")
    assert f"trained on {samples} samples" in record.missing["1"]


def test_what_a_node_says_is_cut_off_and_clean(tmp_path: Path) -> None:
    asked = experiment(rounds=1, flower={"wait": 60, "deadline": 60, "quorum": 0.6})
    desk = Desk(asked, tmp_path)
    desk.change = answered(lambda answer: Answer(words={"error": "\x1b[2J" + "a" * 10_000}))
    play(desk, asked, tmp_path / "run")
    (record,) = RunFolder(tmp_path / "run").records("dsfl")
    assert record.missing["1"] == " [2J" + "a" * 496 + "…"


def test_what_is_wrong_with_a_sites_own_data_stays_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A column named amiss has what nobody else may read."""
    site_file(tmp_path / "mine.parquet", ["Jane Doe", "John Roe"])
    asked = experiment(rounds=1, flower={"wait": 8, "deadline": 60, "quorum": 1.0})
    configs: list[dict[str, Any]] = [{"partition-id": number} for number in range(CLIENTS)]
    configs[1]["train"] = str(tmp_path / "mine.parquet")
    with pytest.raises(RuntimeFailure) as failed:
        play(Desk(asked, tmp_path, configs), asked, tmp_path / "run")
    assert "node 11: its own data cannot be used; its log says why" in str(failed.value)
    assert "Doe" not in str(failed.value)
    assert "'Jane Doe'" in capsys.readouterr().out


def test_frames_that_are_too_long_are_in_the_bytes_of_transport(tmp_path: Path) -> None:
    asked = experiment(rounds=1, flower={"wait": 30, "deadline": 60, "quorum": 0.6})
    desk = Desk(asked, tmp_path)
    play(desk, asked, tmp_path / "honest")
    desk.change = answered(lambda answer: Answer(bytes(2_000_000), answer.words))
    play(desk, asked, tmp_path / "run")
    honest, long = (RunFolder(tmp_path / name).records("dsfl")[0].carried["up"] for name in ("honest", "run"))
    assert 2_000_000 <= long - honest < 2_001_000  # and it is asked for its right answers by itself


def test_a_run_goes_on_where_its_clients_states_are(tmp_path: Path) -> None:
    """Not in one process after a network, nor the other way round, nor as another experiment."""
    asked = experiment(rounds=2)
    in_process(asked, tmp_path / "alone")
    with pytest.raises(
        ExperimentError, match=r"begun in one process: continue with: fedistill resume .*alone"
    ):
        play(Desk(asked, tmp_path), asked, tmp_path / "alone")
    out = tmp_path / "run"
    play(Desk(asked, tmp_path), asked, out)
    with pytest.raises(
        ExperimentError, match=r"was run on a network, .* resume it with: flwr run with the same app"
    ):
        resume_experiment(out, Watch())
    other = experiment(rounds=3)
    with pytest.raises(ExperimentError, match="holds a run of another experiment: name another folder"):
        play(Desk(other, tmp_path), other, out)
    # What says how long to wait is no part of the experiment.
    play(Desk(asked, tmp_path), experiment(rounds=2, flower={"wait": 9, "quorum": 0.1}), out)
    (out / "flower" / "app").mkdir(parents=True)
    with pytest.raises(ExperimentError, match=f"fedistill flower resume {re.escape(str(out))}$"):
        RunFolder.check_free(out)


def test_what_lies_at_a_site_is_for_its_user_alone_and_follows_its_config(tmp_path: Path) -> None:
    asked = experiment()
    run = {"experiment": to_toml(asked)}
    before = os.umask(0o022)
    try:
        site_file(tmp_path / "one.parquet", ["7", "3"])
        site_file(tmp_path / "two.parquet", ["9", "9", "9"])
        own = {"partition-id": 2, "state": str(tmp_path / "state")}
        first = Node(run, {**own, "train": str(tmp_path / "one.parquet")}, "5e551").task
        second = Node(run, {**own, "train": str(tmp_path / "two.parquet")}, "5e551").task
        third = Node(run, own, "5e551").task
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state" / "5e551").stat().st_mode) == 0o700
    assert [task.clients[2].labels.tolist() for task in (first, second)] == [[7, 3], [9, 9, 9]]
    whole = build_task(asked.task, asked.seed)
    assert third.samples() == whole.samples()
    assert second.samples() == (*whole.samples()[:2], 3)


def test_news_are_told_once_though_rounds_are_dropped_and_played_again(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    record = RoundlessRecords(tmp_path)
    record.add(1, 2)
    watch = Told()
    news = news_of.EventTail(tmp_path, watch)
    news.tell()
    assert watch.told == []
    record.drop(2)
    with events.open("a") as file:
        file.write('{"event": "resumed"}\n')
    record.add(2, 3)
    news.tell()
    with events.open("a") as file:
        file.write('{"event": "failed", "arm": "a", "error": "x"}\n{"event": "rou')
    news.tell()
    assert watch.told == [3, "x"]


class RoundlessRecords:
    """A folder's events with rounds of arm `a`."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)

    def add(self, *rounds: int) -> None:
        from fedistill.federation.history import RoundRecord

        for number in rounds:
            record = RoundRecord(number, [], [], 0.0, 0.0, [], {}, [], 0, None, {}, {})
            self.folder.append({"event": "round", "arm": "a", **record.to_json()})

    def drop(self, number: int) -> None:
        from fedistill.experiment.events import EventLog

        EventLog(self.folder.path / "events.jsonl").drop_rounds_after({"a": number - 1})


class Told(Watch):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[int | str] = []

    def round(self, name: str, record: Any) -> None:
        self.told.append(record.round)

    def failed(self, name: str, error: str) -> None:
        self.told.append(error)


def test_a_folder_of_a_start_that_failed_is_not_used_again(tmp_path: Path) -> None:
    (tmp_path / "flower" / "keys").mkdir(parents=True)
    with pytest.raises(ExperimentError, match="flower is left from a run that never began: its logs say why"):
        local_trial.run_trial(experiment(), tmp_path, "test", Watch())
