"""A trial network for the tests: SuperLink and SuperNodes with TLS and known keys, on this machine."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fedistill import parse
from fedistill.communication.protocol.shared_state import dump_states
from fedistill.config.schema import Experiment
from fedistill.experiment.findings import Finding
from fedistill.experiment.results import ResultsJson
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare, run_experiment
from fedistill.federation.history import RoundRecord
from fedistill.flower import app_template, keys
from fedistill.state import encode_state, to_plain
from helpers.processes import processes_with

CLIENTS = 3


def experiment(**changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "rounds": 3,
        "task": {"name": "digits", "clients": CLIENTS, "limit": 240, "public": 60},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
        "runtime": {"kind": "serial"},
        "arms": [{"method": "dsfl"}],
        "flower": {"wait": 120, "deadline": 60, "quorum": 0.6},
    }
    return parse({**raw, **changes}, "test")


def lay_out(wanted: Experiment, out: Path, client: str = "") -> None:
    """Write what a network needs; ``client``: in place of the client's side that fedistill has."""
    keys.make_keys(out / "flower" / "keys", CLIENTS + 1, ["hub.example"])
    app_template.write_app(wanted, out / "flower" / "app", out.absolute(), "test")
    if client:
        (out / "flower" / "app" / "fedistill_app" / "client.py").write_text(client)


class Watch:
    """Remembers rounds and failures, and may do something after each round."""

    def __init__(self, then: Callable[[int], None] = lambda round: None) -> None:
        self.records: dict[int, RoundRecord] = {}
        self.failures: list[str] = []
        self._then = then

    def findings(self, findings: Sequence[Finding]) -> None: ...

    def arm(self, name: str, rounds: int, done: int) -> None: ...

    def round(self, name: str, record: RoundRecord) -> None:
        self.records[record.round] = record
        self._then(record.round)

    def failed(self, name: str, error: str) -> None:
        self.failures.append(error)


def in_process(wanted: Experiment, out: Path) -> ResultsJson:
    return run_experiment(wanted, out, "test", Watch())


def frames(folder: Path) -> list[list[tuple[int, str, int, int]]]:
    """Client, direction, bytes and payload of each frame, for each round of the first arm."""
    opened = RunFolder(folder)
    records = opened.records(opened.experiment().arms[0].name)
    return [[(e.client, e.direction, e.bytes, e.payload) for e in r.traffic] for r in records]


def server_model(folder: Path) -> bytes:
    (path,) = (folder / "models").glob("*/server/model.safetensors")
    return path.read_bytes()


def what_is_kept(folder: Path) -> tuple[bytes, bytes, dict[int, bytes]]:
    """The server's state, what it remembers of its links, and clients' states, of a run's only arm."""
    opened = RunFolder(folder)
    (arm,) = prepare(opened.experiment())[1]
    run = opened.restore(arm)
    return encode_state(to_plain(run.server)), encode_state(dump_states(run.shared_states)), dict(run.clients)


def at_sites(places: Iterable[Path], round: int) -> dict[int, bytes]:
    """The state after a round that each client keeps in one of these folders, of a run's only arm."""
    found = [path for place in places for path in place.glob(f"*/client-*/0/{round}.safetensors")]
    states = {int(path.parents[1].name.removeprefix("client-")): path.read_bytes() for path in found}
    return {client: state for client, state in states.items() if state}


def processes_of(folder: Path) -> list[int]:
    """Processes of this machine that were started for a run in this folder."""
    return processes_with("FLWR_HOME", folder / "flower" / "home")


def site_file(path: Path, labels: list[Any]) -> Path:
    """A parquet file of plain images, each brighter than the one before."""
    images = []
    for place in range(len(labels)):
        image = path.parent / f"{place}.png"
        Image.new("L", (8, 8), color=10 * place).save(image)
        images.append({"bytes": image.read_bytes(), "path": None})
    pictures = pa.array(images, type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": pictures, "label": labels}), path)
    return path
