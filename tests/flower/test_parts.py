"""Parts of the Flower runtime by themselves: keys, the app, what crosses, what a node makes of its config."""

import contextlib
import json
import ssl
import stat
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedistill.config.toml import parse, to_toml
from fedistill.data.build import build_task
from fedistill.errors import ExperimentError, FrameError
from fedistill.flower import app_template, keys
from fedistill.flower.processes import TrialNetwork
from fedistill.models.signature import Preprocessing
from helpers.flower_trial import experiment, site_file

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Flower uses what its libraries will drop
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    from fedistill.flower.node import Node
    from fedistill.flower.serde import (
        Answer,
        Order,
        Reply,
        open_order,
        open_reply,
        overhead,
        seal_order,
        seal_reply,
    )
    from helpers.flower_desk import Desk, opened


pytestmark = pytest.mark.usefixtures("app")


def test_the_server_is_known_by_the_authority_and_by_its_hosts(tmp_path: Path) -> None:
    written = keys.make_keys(tmp_path / "keys", 2, ["hub.example", "192.0.2.7"])
    authority = x509.load_pem_x509_certificate((tmp_path / "keys" / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((tmp_path / "keys" / "server.crt").read_bytes())
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    # A SuperLink that listens on all addresses reaches itself by the loopback.
    assert names.get_values_for_type(x509.DNSName) == ["hub.example", "localhost"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "127.0.0.1"]
    assert {path.name for path in written} == {
        *("ca.crt", "server.crt", "server.key"),
        *("node-0.key", "node-0.pub", "node-1.key", "node-1.pub"),
    }
    for path in written:
        hidden = stat.S_IMODE(path.stat().st_mode) == 0o600
        assert hidden == (path.suffix == ".key"), path


def test_strict_clients_accept_the_server(tmp_path: Path) -> None:
    """Python 3.13 and later check certificates by RFC 5280 to the letter."""
    keys.make_keys(tmp_path, 1, ["hub.example"])
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    site = client.wrap_bio(down, up, server_hostname="hub.example")
    hub = server.wrap_bio(up, down, server_side=True)
    for _ in range(3):
        for end in (site, hub):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert site.version() == hub.version() == "TLSv1.3"


@pytest.mark.parametrize("host", ["", "hub.example:8000", "https://hub", "hübsch.example", "-hub", "a" * 64])
def test_what_is_no_host_is_refused_before_anything_is_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(ExperimentError, match="is no host: give a name such as"):
        keys.make_keys(tmp_path / "keys", 1, [host])
    assert not (tmp_path / "keys").exists()


def test_each_node_has_a_pair_of_its_own(tmp_path: Path) -> None:
    keys.make_keys(tmp_path, 2, ["localhost"])
    publics = []
    for node in range(2):
        private = serialization.load_ssh_private_key((tmp_path / f"node-{node}.key").read_bytes(), None)
        public = serialization.load_ssh_public_key((tmp_path / f"node-{node}.pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert private.public_key() == public
        publics.append(public)
    assert publics[0] != publics[1]


def test_keys_are_not_written_over(tmp_path: Path) -> None:
    keys.make_keys(tmp_path, 1, ["localhost"])
    before = (tmp_path / "node-0.key").read_bytes()
    with pytest.raises(ExperimentError, match="has keys already"):
        keys.make_keys(tmp_path, 1, ["localhost"])
    assert (tmp_path / "node-0.key").read_bytes() == before


def test_the_app_holds_the_experiment_and_is_not_written_over(tmp_path: Path) -> None:
    wanted = experiment()
    app_template.write_app(wanted, tmp_path / "app", tmp_path / "out", "typed")
    read = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())
    config = read["tool"]["flwr"]["app"]["config"]
    assert parse(tomllib.loads(config["experiment"]), "test") == wanted
    assert (config["out"], config["command"]) == (str(tmp_path / "out"), "typed")
    with pytest.raises(ExperimentError, match="has an app already"):
        app_template.write_app(wanted, tmp_path / "app", tmp_path / "out", "typed")


FRAMES = st.dictionaries(st.integers(0, 10**9), st.binary(max_size=300), max_size=4)


@given(FRAMES, st.integers(0, 10_000), st.text(max_size=20), st.text(max_size=20))
def test_orders_and_replies_come_out_as_they_went_in(
    frames: dict[int, bytes], round: int, arm: str, said: str
) -> None:
    order = Order("5e551", arm, round, frames, fingerprint=said)
    message = seal_order(order, node=7, kind="train")
    assert open_order(message) == order
    reply = Reply({client: Answer(frame, {"who": client}) for client, frame in frames.items()}, {"all": said})
    sealed = seal_reply(reply, message)
    assert open_reply(sealed, frames, longest=20) == reply
    assert sealed.metadata.dst_node_id == message.metadata.src_node_id
    assert overhead(sealed, frames.values()) > 0


def sealed(frames: dict[int, bytes]) -> int:
    return overhead(seal_order(Order("a", "b", 1, frames), 7, "train"), frames.values())


def test_overhead_does_not_grow_with_the_frame() -> None:
    """Flower serialises the array apart from the rest, so only lengths of lengths differ."""
    sizes = [sealed({0: bytes(n)}) for n in (10, 1_000, 100_000)]
    assert max(sizes) - min(sizes) < 20


def test_what_all_clients_of_a_node_are_sent_crosses_once() -> None:
    ten = sealed(dict.fromkeys(range(10), bytes(100_000)))
    assert sealed({0: bytes(100_000)}) < ten < 2_000
    message = seal_order(Order("a", "b", 1, {client: bytes([client]) for client in range(100)}), 7, "train")
    assert len(get_all_nested_objects(message)) < 10, "each of which is a request"
    opened = open_order(seal_order(Order("a", "b", 1, {1: bytes(9), 4: bytes(9)}), 7, "train"))
    assert opened.frames[1] is opened.frames[4], "and it is decoded once"


ARRAY = Array(dtype="uint8", shape=(1,), stype="bytes", data=b"x")
FRAMES_OF_ONE = ArrayRecord({"frames": ARRAY})
GOOD: dict[str, Any] = {"session": "a1", "arm": "x", "round": 1, "fingerprint": ""}
WORDS = ConfigRecord(GOOD)
INDEX: dict[str, Any] = {"clients": [0], "lengths": [1], "places": [0], "words": ["{}"]}


def content(index: dict[str, Any] | None = None, words: dict[str, Any] | None = None) -> RecordDict:
    records = {
        "index": ConfigRecord({**INDEX, **(index or {})}),
        "words": ConfigRecord({**GOOD, **(words or {})}),
    }
    return RecordDict({"frames": FRAMES_OF_ONE, **records})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (RecordDict({}), "no part"),
        (RecordDict({"frames": FRAMES_OF_ONE, "words": WORDS}), "no part 'index'"),
        (RecordDict({**content(), "frames": ArrayRecord({"other": ARRAY})}), "no part"),
        (RecordDict({**content(), "frames": ArrayRecord({"frames": ARRAY, "b": ARRAY})}), "one array"),
        (RecordDict({**content(), "frames": ConfigRecord({"frames": 1})}), "one array"),
        (RecordDict({**content(), "index": FRAMES_OF_ONE}), "one array"),
        (RecordDict({**content(), "words": FRAMES_OF_ONE}), "one array"),
        *(
            (content(index=changed), what)
            for changed, what in (
                ({"clients": "0"}, "the clients of its frames"),
                ({"clients": [-1]}, "the clients of its frames"),
                ({"clients": [0.0]}, "the clients of its frames"),
                ({"clients": [True]}, "the clients of its frames"),
                ({"clients": [0, 1]}, "for each client"),
                ({"lengths": [2]}, "another index"),
                ({"lengths": [1, 1]}, "another index"),
                ({"lengths": [2, -1]}, "the lengths of its frames"),
                ({"places": [1]}, "another index"),
                ({"places": [-1]}, "the places of its frames"),
                ({"clients": [0, 0], "places": [0, 0], "words": ["{}", "{}"]}, "another index"),
                ({"words": "{}"}, "for each client"),
            )
        ),
        (content(words={"session": "../up"}), "no session"),
        (content(words={"session": ""}), "no session"),
        (content(words={"round": -1}), "no arm and round"),
        (content(words={"round": 1.5}), "no arm and round"),
        (content(words={"arm": 3}), "no arm and round"),
        (content(words={"fingerprint": 3}), "no fingerprint"),
    ],
)
def test_what_is_no_order_is_refused(content: RecordDict, what: str) -> None:
    with pytest.raises(FrameError, match=what):
        open_order(Message(content, dst_node_id=1, message_type="train"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (content(index={"clients": [1]}), "clients that were not asked"),
        (
            content(index={"clients": [0, 1], "places": [0, 0], "words": ["{}"] * 2}),
            "than those of 1 clients",
        ),
        (content(index={"lengths": [1, 0]}), "than those of 1 clients"),
        (content(index={"more": [1]}), "than those of 1 clients"),
        *(
            (content(index={"words": [text]}), "not JSON with names")
            for text in ("{", "[]", 1, '{"a": ' + "9" * 19 + "}", '{"a": "' + "x" * 100 + '"}')
        ),
        *(
            (content(index={"words": [text]}), "no text, number or list")
            for text in (
                *('{"a": NaN}', '{"a": 1e999}', '{"a": null}', '{"a": {}}', '{"a": [[]]}', '{"a": [1.5]}'),
                '{"a": "\\ud800"}',
            )
        ),
        (content(index={"words": [json.dumps(dict.fromkeys("abcdefghi", 1))]}), "too many, or have names"),
        (content(words={"n" * 41: 1}), "names that are too long"),
        (RecordDict({**content(), "more": WORDS}), "4 parts where 3 are expected"),
        (content(words={"error": "x" * 101}), "no text, number or list"),
        (content(words={"clients": [1] * 101}), "no text, number or list"),
        (content(words={"a": [0.5]}), "no text, number or list"),
        (content(words={"a": b"x"}), "no text, number or list"),
    ],
)
def test_what_is_no_reply_is_refused(content: RecordDict, what: str) -> None:
    with pytest.raises(FrameError, match=what):
        open_reply(Message(content, dst_node_id=1, message_type="train"), asked=[0], longest=100)


def node(place: Path, own: dict[str, Any], **changes: Any) -> Node:
    run = {"experiment": to_toml(experiment(**changes))}
    return Node(run, {"state": str(place), **own}, "5e551")


def test_a_node_keeps_its_own_share_and_nothing_of_others(tmp_path: Path) -> None:
    wanted = experiment()
    whole = build_task(wanted.task, wanted.seed)
    task = node(tmp_path, {"partition-id": 1}).task
    assert [len(data) for data in task.clients] == [0, len(whole.clients[1]), 0]
    assert torch.equal(task.clients[1].samples, whole.clients[1].samples)
    assert task.public_labels is None


@pytest.mark.parametrize("number", [3, -1, "0", 1.0, None])
def test_a_node_must_say_which_client_it_is(tmp_path: Path, number: Any) -> None:
    with pytest.raises(ExperimentError, match=r"partition-id = .* must be a whole number from 0 to 2"):
        node(tmp_path, {} if number is None else {"partition-id": number})


def test_a_site_learns_from_data_of_its_own(tmp_path: Path) -> None:
    path = site_file(tmp_path / "mine.parquet", ["7", "3", "7", "9"])
    own = node(tmp_path, {"partition-id": 2, "train": str(path)})
    mine = own.task.clients[2]
    assert mine.labels.tolist() == [7, 3, 7, 9]
    assert mine.samples[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert (own.clients, own.has_own_data) == ([2], True)
    assert own.fingerprint("") == build_task(own.experiment.task, own.experiment.seed).fingerprint()


def test_a_site_brings_a_folder_of_images_of_one_class(tmp_path: Path) -> None:
    (tmp_path / "mine" / "3").mkdir(parents=True)
    for name in "ab":
        Image.new("L", (8, 8), color=50).save(tmp_path / "mine" / "3" / f"{name}.png")
    own = node(tmp_path, {"partition-id": 0, "train": str(tmp_path / "mine"), "format": "imagefolder"})
    assert own.task.clients[0].labels.tolist() == [3, 3]
    assert own.task.clients[0].samples.unique().tolist() == [50]


def test_a_site_brings_texts(tmp_path: Path) -> None:
    rows = [f"word{place} word{place % 3},{'good' if place % 2 else 'bad'}" for place in range(20)]
    (tmp_path / "all.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "mine.csv").write_text("said,mood\nword1 word2,good\n")
    task = {"format": "csv", "train": str(tmp_path / "all.csv"), "clients": 2, "public": 8}
    given = {"train": str(tmp_path / "mine.csv"), "format": "csv", "input": "said", "label": "mood"}
    own = node(tmp_path, {"partition-id": 1, **given}, task=task)
    mine = own.task.clients[1]
    assert [own.task.classes[label] for label in mine.labels] == ["good"]
    assert list(mine.samples) == ["word1 word2"]
    assert own.task.client_inputs(1, Preprocessing()).shape == (1, own.task.signature.shape[0])


def patients(path: Path, rows: int, colours: str = "red blue") -> str:
    lines = [f"{40 + row},{colours.split()[row % 2]},{'ill' if row % 3 else 'well'}" for row in range(rows)]
    path.write_text("\n".join(["age,colour,label", *lines]) + "\n")
    return str(path)


@pytest.mark.parametrize("scaling", ["public", "sums"])
def test_a_node_builds_the_encoding_of_a_table_as_the_server_does(tmp_path: Path, scaling: str) -> None:
    task = {
        "format": "csv",
        "train": patients(tmp_path / "all.csv", 60),
        "clients": 2,
        "public": 12,
        "table": {"scaling": scaling},
    }
    own = node(tmp_path, {"partition-id": 1}, task=task)
    whole = build_task(experiment(task=task).task, 0)
    assert own.fingerprint("") == whole.fingerprint()
    assert own.task.record_encoding() == whole.record_encoding()
    assert own.task.clients[1].samples.equal(whole.clients[1].samples)
    assert len(own.task.clients[0]) == 0


def test_a_site_brings_a_table(tmp_path: Path) -> None:
    """Its columns may be in another order, and have values and categories that the task does not know."""
    task = {"format": "csv", "train": patients(tmp_path / "all.csv", 60), "clients": 2, "public": 12}
    task |= {"table": {"numeric": ["age"], "categorical": ["colour"]}, "missing": ["?"]}
    (tmp_path / "mine.csv").write_text("label,more,colour,age\nill,1,violet,?\nwell,2,red,50\n")
    given = {"partition-id": 1, "train": str(tmp_path / "mine.csv"), "format": "csv"}
    mine = node(tmp_path, given, task=task).task
    encoding = mine.record_encoding()
    assert encoding is not None
    (age,), (colour,) = encoding.numeric, encoding.categorical
    assert colour.categories == ("blue", "red")
    unknown, known = mine.clients[1].samples
    assert unknown.tolist() == [0, 0, 0]
    assert known.tolist() == [pytest.approx((50 - age.mean) / age.std), 0, 1]


def test_sums_and_a_table_of_ones_own_are_refused_and_the_server_is_told_why(tmp_path: Path) -> None:
    """Other faults of a site's data stay there; this is one of the experiment."""
    task = {"format": "csv", "train": patients(tmp_path / "all.csv", 60), "clients": 2, "public": 12}
    wanted = experiment(task={**task, "table": {"scaling": "sums"}})
    own = {"partition-id": 1, "train": patients(tmp_path / "mine.csv", 20), "format": "csv"}
    desk = Desk(wanted, tmp_path, [own])
    (reply,) = desk.pull_messages(desk.push_messages([seal_order(Order("5e551"), 10, "query")]))
    said = opened(reply).words["error"]
    assert isinstance(said, str)
    assert said.startswith('task.table.scaling = "sums" needs the sums of every site')
    assert said.endswith('set it to "public"')


def test_data_that_do_not_fit_the_task_are_refused(tmp_path: Path) -> None:
    path = site_file(tmp_path / "mine.parquet", ["7", "cat"])
    with pytest.raises(
        ExperimentError, match=r"not classes of the task: 'cat'\. Classes of the task: '0', '1'"
    ):
        assert node(tmp_path, {"partition-id": 0, "train": str(path)}).task
    with pytest.raises(ExperimentError, match="no such file"):
        assert node(tmp_path, {"partition-id": 0, "train": str(tmp_path / "none.parquet")}).task
    with pytest.raises(ExperimentError, match=r"node config: .*format"):
        node(tmp_path, {"partition-id": 0, "train": str(path), "format": "excel"})


def test_a_site_has_a_model_of_its_own_where_weights_do_not_travel(tmp_path: Path) -> None:
    arms = [{"method": "dsfl"}, {"method": "fedavg"}, {"method": "fml"}]
    own = node(tmp_path, {"partition-id": 1, "model": "cnn-s"}, arms=arms)
    assert [peer.model for peer in own.arm("dsfl").federation.clients] == ["mlp-s", "cnn-s", "mlp-s"]
    assert own.arm("fml").federation.clients[1].model == "cnn-s"
    with pytest.raises(ExperimentError, match="method fedavg sends the weights of the model that"):
        own.arm("fedavg")
    with pytest.raises(ExperimentError, match="cnn-l"):
        node(tmp_path, {"partition-id": 1, "model": "cnn-l"}).arm("dsfl")


def test_what_goes_to_this_machine_goes_by_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    for name in ("NO_PROXY", "no_proxy"):
        assert TrialNetwork(tmp_path, 1).environment[name] == "intranet.example,127.0.0.1,localhost"


def test_nothing_that_is_started_reports_on_its_use(tmp_path: Path) -> None:
    environment = TrialNetwork(tmp_path, 1).environment
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"


def test_keys_and_app_are_written_by_commands(tmp_path: Path) -> None:
    """What the documents tell to type; the app's experiment is that of the file, as it was changed."""
    program = str(Path(sys.executable).parent / "fedistill")
    (tmp_path / "experiment.toml").write_text(to_toml(experiment()))
    for command in (
        ["init", "experiment.toml", "app", "--out", "results", "--set", "rounds=7"],
        ["keys", "keys", "--nodes", "2", "--host", "hub.example"],
    ):
        done = subprocess.run([program, "flower", *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    config = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert parse(tomllib.loads(config["experiment"]), "test") == experiment(rounds=7)
    assert config["out"] == "results"
    assert len([*(tmp_path / "keys").iterdir()]) == 7
    again = subprocess.run([program, "flower", "keys", "keys"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.strip().endswith("keys has keys already; name another folder, or move them away")


def test_without_the_extra_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedistill.cli import flower

    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(ExperimentError, match=r"pip install 'fedistill\[flower\]'"):
        flower.keys_command(Path("never"), 1)
