"""Real SuperLink and SuperNode processes: the same bits as in one process, and what does not stop a run."""

import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedistill.config.toml import load
from fedistill.data.task import Task
from fedistill.errors import RuntimeFailure
from fedistill.experiment.run_folder import RunFolder
from fedistill.flower.local_trial import follow
from fedistill.flower.processes import HOST, TrialNetwork, free_ports
from fedistill.state import decode_state
from helpers.flower_trial import (
    CLIENTS,
    Watch,
    at_sites,
    experiment,
    frames,
    in_process,
    lay_out,
    processes_of,
    server_model,
    site_file,
    what_is_kept,
)
from helpers.processes import wait_for
from helpers.program import PROGRAM, here, start

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "flower-digits" / "experiment.toml"
PATIENCE = 480


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """No test waits for ever, whatever hangs."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"not done after {2 * PATIENCE} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(2 * PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex((HOST, port)) == 0


def test_stopped_and_resumed_it_ends_as_in_one_process(tmp_path: Path) -> None:
    """`up` is stopped by Ctrl-C after a round and leaves nothing running; `resume` ends in the same bits.

    Two of its three clients share a node. The folder has been moved in between. A `resume` beside the first
    network disturbs nothing.
    """
    out = tmp_path / "run"
    shared = ["task.limit=300", "rounds=2", f"task.clients={CLIENTS}", "flower.clients_per_node=2"]
    command = ["flower", "up", str(EXAMPLE), "--out", str(out)]
    command += [part for setting in shared for part in ("--set", setting)]
    process = start(*command, cwd=ROOT)
    try:
        events = out / "events.jsonl"

        def begun() -> bool:
            return process.poll() is not None or (events.exists() and '"round": 1' in events.read_text())

        wait_for(begun, "round 1", PATIENCE)
        assert process.poll() is None, process.communicate()
        assert len(processes_of(out)) >= 1 + 2
        assert not (out / "flower" / "node-2").exists()
        app = out / "flower" / "app" / "pyproject.toml"
        written = app.stat().st_mtime_ns
        second = here("flower", "resume", out, cwd=ROOT)
        assert second.stderr.startswith(f"fedistill: {out}: another process is running in this folder: wait")
        assert app.stat().st_mtime_ns == written
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1, said
    assert f"fedistill flower resume {out}" in said
    wait_for(lambda: not processes_of(out), "all processes to end", 30)

    out = out.rename(tmp_path / "moved")
    done = subprocess.run(
        [PROGRAM, "flower", "resume", out], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not processes_of(out), "all processes to end", 30)
    expected = tmp_path / "expected"
    results = in_process(load(EXAMPLE, [*shared, "runtime.kind=serial"]), expected)
    assert frames(out) == frames(expected)
    assert server_model(out) == server_model(expected)
    server_state, shared_states, clients = what_is_kept(expected)
    assert what_is_kept(out) == (server_state, shared_states, {})
    assert at_sites((out / "flower").glob("node-*"), round=2) == clients
    found = RunFolder(out)
    name = results["arms"][0]["name"]
    assert [r.views for r in found.records(name)] == [r["views"] for r in results["arms"][0]["rounds"]]
    assert json.loads((out / "results.json").read_text())["command"] == shlex.join(["fedistill", *command])
    # What Flower adds is counted apart: more than nothing, and not in the payload.
    assert all(r.carried["up"] > 0 < r.carried["down"] for r in found.records(name))
    assert not [r.round for r in found.records(name) if r.missing]


@pytest.mark.parametrize(
    ("asked", "status"), [(signal.SIGTERM, 1), (signal.SIGHUP, 1), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_whatever_ends_a_trial_its_processes_end(asked: signal.Signals, status: int, tmp_path: Path) -> None:
    """SIGKILL leaves no time to stop them; their guard does."""
    out = tmp_path / "run"
    command = ["flower", "up", str(EXAMPLE), "--nodes", str(CLIENTS), "--out", str(out)]
    process = start(*command, "--set", "task.limit=300", "--set", "rounds=2", cwd=ROOT)
    try:
        wait_for(lambda: process.poll() is not None or len(processes_of(out)) >= 2, "two processes", PATIENCE)
        assert process.poll() is None, process.communicate()
        process.send_signal(asked)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status, said
    assert "Traceback" not in said
    wait_for(lambda: not processes_of(out), "all processes to end", 30)


def test_simulated_by_ray_it_ends_as_in_one_process(tmp_path: Path) -> None:
    """The same app under Flower's own simulation, where clients share long-lived processes."""
    out, expected = tmp_path / "run", tmp_path / "expected"
    wanted = experiment(arms=[{"method": "scarlet", "samples": 40}])
    lay_out(wanted, out)
    in_process(wanted, expected)
    (port,) = free_ports(1)
    environment = TrialNetwork(out, 0).environment | {"RAY_USAGE_STATS_ENABLED": "0"}
    settings = out / "flower" / "home" / "config.toml"
    settings.parent.mkdir()
    settings.write_text(f'[superlink.simulation]\naddress = "{HOST}:{port}"\ninsecure = true\n')
    options = ["--simulation", "--insecure", "--host", HOST, "--port", str(port)]
    with (out / "flower" / "superlink.log").open("wb") as log:
        link = subprocess.Popen(
            [PROGRAM.parent / "flower-superlink", *options, "--disable-runtime-dependency-installation"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        wait_for(lambda: listens(port), "the SuperLink", PATIENCE)
        nodes = ["--federation-config", f"num-supernodes={CLIENTS} client-resources-num-cpus=1"]
        done = subprocess.run(
            [PROGRAM.parent / "flwr", "run", out / "flower" / "app", "simulation", "--stream", *nodes],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert RunFolder(out).last_round("scarlet") == wanted.rounds, done.stdout + done.stderr
    finally:
        os.killpg(link.pid, signal.SIGTERM)
        link.wait(30)
    assert frames(out) == frames(expected)
    assert server_model(out) == server_model(expected)


MISCHIEF = """
import pathlib
import time
from dataclasses import replace

from flwr.clientapp import ClientApp

from fedistill.communication.protocol import frame as frames
from fedistill.flower import client_app as node
from fedistill.flower.serde import Reply, open_order, open_reply, seal_order, seal_reply

HERE = pathlib.Path("{here}")
app = ClientApp()
app.query()(node.hello)
app.evaluate()(node.evaluate)


@app.train()
def work(message, context):
    who, round = context.node_config["partition-id"], open_order(message).round
    if round == 4 and not (HERE / "calm").exists():
        order = replace(open_order(message), frames={{who: b"FD" + bytes(9)}})
        message.content = seal_order(order, 1, "train").content
    answer = node.work(message, context)
    change = CHANGES.get((who, round))
    if change is None:
        return answer
    said = open_reply(answer, [who], 100_000).answers[who]
    return seal_reply(Reply({{who: replace(said, frame=change(said.frame))}}), message)


def broken(frame):
    return frame[:-6] + bytes(6)


def endless(frame):
    return bytes(2_000_000)


def of_before(frame):
    return frames.encode(replace(frames.decode(frame), round=1))


def late(frame):
    until = time.monotonic() + 200
    while not (HERE / "round 2 is over").exists() and time.monotonic() < until:
        time.sleep(0.2)
    return frame


CHANGES = {{(1, 2): endless, (2, 2): late, (1, 3): of_before, (2, 3): broken}}
__all__ = ["app"]
"""


OWN_MODEL = """
from torch import nn


def net(signature):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, signature.classes))
"""


class Everywhere(TrialNetwork):
    """On all addresses, as a SuperLink for other machines is; its certificate is for another name."""

    listens_on = "0.0.0.0"


class Sites(TrialNetwork):
    """Client 0 has data and a model of its own."""

    def node_config(self, node: int) -> str:
        own = (
            f' train="{self.folder.parent.parent / "mine.parquet"}" model="own_model:net"'
            if node == 0
            else ""
        )
        return super().node_config(node) + own


def test_a_client_that_misbehaves_is_named_and_the_round_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that are endless, of another round or broken, an error, a late reply; then all at once.

    Client 0, which behaves, learns from samples that only it has, in a model that lies where `up` was called.
    """
    (tmp_path / "own_model.py").write_text(OWN_MODEL)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    site_file(tmp_path / "mine.parquet", ["7", "3", "7", "9"] * 6)
    wanted = experiment(rounds=4, flower={"wait": 120, "deadline": 40, "quorum": 0.3})
    lay_out(wanted, out, MISCHIEF.format(here=tmp_path))
    watch = Watch(lambda round: (tmp_path / f"round {round} is over").touch())
    with Sites(out, CLIENTS) as network:
        follow(network, wanted, out, watch)
        (said,) = watch.failures
        assert said == (
            "round 4: 0 of 3 clients sent a valid reply, but flower.quorum asks for 1 (clients 0, 1 and 2:"
            " not a fedistill frame: it does not start with 'fd')"
        )
        missing = {round: record.missing for round, record in watch.records.items()}
        assert {round: list(who) for round, who in missing.items()} == {1: [], 2: ["1", "2"], 3: ["1", "2"]}
        assert missing[2]["1"].startswith("it sent 2,000,000 bytes where at most")
        assert missing[2]["2"] == "no reply within 40 s"
        assert "round 1" in missing[3]["1"]
        assert "checksum" in missing[3]["2"]
        assert all(r.dropped == [int(c) for c in r.missing] for r in watch.records.values())
        (tmp_path / "calm").touch()
        follow(network, wanted, out, watch)
    assert sorted(watch.records) == [1, 2, 3, 4]
    assert watch.records[4].missing == {}
    assert sum(record.carried["late"] for record in watch.records.values()) == 1
    assert RunFolder(out).last_round("dsfl") == 4
    # Its data have no share in the experiment's counts of classes.
    assert set(watch.records[4].views) == {"server@global", "client@global"}
    (held,) = (out / "flower" / "node-0").glob("*/client-0")
    assert Task.open(held / "task.safetensors").clients[0].labels.tolist() == [7, 3, 7, 9] * 6
    kept = {
        path.stem: len(decode_state(path.read_bytes())["method"]["model"]["weights"])
        for path in held.glob("0/*.safetensors")
    }
    weights = (64 + 1) * 5 + (5 + 1) * 10
    assert kept == {"3": weights, "4": weights}


def test_server_and_node_are_killed_and_strangers_stay_out(tmp_path: Path) -> None:
    """The SuperLink dies after round 1, a SuperNode after round 2; both come back; nobody else gets in."""
    out, expected = tmp_path / "run", tmp_path / "expected"
    # Within the deadline the SuperLink forgets the node that died, and lets it in again.
    wanted = experiment(rounds=6, arms=[{"method": "scarlet", "samples": 40}])
    lay_out(wanted, out)
    in_process(wanted, expected)

    def kill_server(round: int) -> None:
        if round == 1:
            network.kill("superlink")

    def kill_node(round: int) -> None:
        if round == 2:
            network.kill("node-1")
        if round == 3:
            network.start_node(1)

    with Everywhere(out, CLIENTS) as network:
        strangers = intrude(network, tmp_path)
        try:
            with pytest.raises(RuntimeFailure, match="superlink has ended"):
                follow(network, wanted, out, Watch(kill_server))
            network.start_link()
            follow(network, wanted, out, Watch(kill_node))
        finally:
            for process in strangers.values():
                process.kill()
                process.wait()
    logs = {name: (tmp_path / f"{name}.log").read_text(errors="replace") for name in strangers}
    records = RunFolder(out).records("scarlet")
    assert [record.round for record in records] == [1, 2, 3, 4, 5, 6]
    assert frames(out)[:2] == frames(expected)[:2]
    without = [record.round for record in records if "1" in record.missing]
    assert without
    assert set(without) <= {3, 4, 5}
    # Back again, it is sent the labels that it missed.
    back = records[max(without)]
    down = {entry.client: entry.payload for entry in back.traffic if entry.direction == "down"}
    assert down[1] > down[0] == down[2]
    assert not any("client 3" in str(record.missing) for record in records)
    for name, why in {
        "unknown key": "Failed to activate SuperNode",
        "wrong CA": "CERTIFICATE_VERIFY_FAILED",
        "plain text": "could not establish a connection",
    }.items():
        assert "SuperNode ID" not in logs[name]
        assert why in logs[name]
    assert "SuperNode ID" in (network.folder / "node-0.log").read_text()


def intrude(network: TrialNetwork, place: Path) -> dict[str, "subprocess.Popen[bytes]"]:
    """SuperNodes that must not get in: with a key that nobody registered, another CA, and without TLS."""
    from fedistill.flower import keys

    keys.make_keys(place / "other", 1, [HOST])
    held = network.folder / "keys"
    key = ["--auth-supernode-private-key", str(held / "node-3.key")]
    right = ["--root-certificates", str(held / "ca.crt")]
    wrong = ["--root-certificates", str(place / "other" / "ca.crt")]
    known = ["--auth-supernode-private-key", str(held / "node-0.key")]
    asked = {
        "unknown key": [*right, *key],
        "wrong CA": [*wrong, *known],
        "plain text": ["--insecure"],
    }
    started = {}
    for name, options in asked.items():
        with (place / f"{name}.log").open("wb") as log:
            started[name] = subprocess.Popen(
                [
                    str(PROGRAM.parent / "flower-supernode"),
                    *options,
                    *("--superlink", network.address, "--node-config", "partition-id=0"),
                    *("--max-wait-time", "20", "--port", str(free_ports(1)[0])),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**network.environment, "FLWR_HOME": str(place / name)},
            )
    return started
