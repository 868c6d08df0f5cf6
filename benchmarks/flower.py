"""Seconds of a round on Flower beside those on one machine, and from which size on a second machine pays.

    python benchmarks/flower.py [--rounds 6]

Network: `voting` on digits with models of `mlp-s`, which work little, by SuperLink and SuperNodes on this
machine with TLS and known keys, and on one machine with two workers; seconds of a round are medians without
the first two, in which nodes read their data. `set-up` is the time until the first round has ended. Frames
are equal, and checked to be. The first layouts have a node for each client, the last ones several at a node.

Models: seconds that one epoch of FedAvg takes a client with 400 images of 28 x 28, on one core. From both:

    leave at = the clients from which two machines of two cores end a round before one does,

that is, those whose work on one machine takes twice what the network adds to a round. Bytes over a real link
come on top of it: `fedistill doctor` says how many.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kept import keep

from fedistill import parse
from fedistill.config.schema import Experiment
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import run_experiment
from fedistill.flower import local_trial

RESULTS = Path(__file__).parent / "results" / "flower.json"
WARM = 2
CORES = 2
LAYOUTS = ((3, 3), (12, 12), (12, 2), (120, 2))
"""Clients and nodes."""
MODELS = ("mlp-s", "cnn-s", "cnn-m")


class Clock:
    """Notes when rounds end."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ends: list[float] = []

    def findings(self, findings: Sequence[Any]) -> None: ...

    def arm(self, name: str, rounds: int, done: int) -> None: ...

    def round(self, name: str, record: Any) -> None:
        self.ends.append(time.perf_counter())

    def failed(self, name: str, error: str) -> None:
        raise SystemExit(f"arm {name} failed: {error}")

    def median(self) -> float:
        spans = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        # What is evaluated is evaluated after the last round.
        return statistics.median(spans[WARM - 1 : -1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="of each run; 5 at least")
    rounds = parser.parse_args().rounds
    about = {
        "command": f"python benchmarks/flower.py --rounds {rounds}",
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("fedistill", "flwr", "torch")},
        "date": time.strftime("%Y-%m-%d"),
    }
    added = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for clients, nodes in LAYOUTS:
            row = network(clients, nodes, rounds, Path(folder))
            added = row["seconds"] - row["one machine"]
            name = f"{clients} clients, {nodes} nodes"
            print(f"{name}: " + ", ".join(f"{what} {value:,}" for what, value in row.items()))
            keep(RESULTS, "network", name, row | about)
        for model in MODELS:
            seconds = of_a_client(model, rounds, Path(folder))
            leave_at = 2 * added * CORES / seconds
            print(f"{model}: {seconds:.3f} s a client; leave at {leave_at:,.0f} clients")
            row = {"seconds of a client": round(seconds, 4), "leave at": round(leave_at)}
            keep(RESULTS, "models", model, row | about)


def network(clients: int, nodes: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Return the seconds of a round at so many nodes and on one machine, and bytes of the last round."""
    asked = parse(
        {
            "rounds": rounds,
            "task": {"name": "digits", "clients": clients, "public": 300},
            "models": {"clients": ["mlp-s"], "server": "mlp-s"},
            "evaluate": {"every": rounds},
            "runtime": {"kind": "processes", "workers": CORES},
            "flower": {"clients_per_node": clients // nodes},
            "arms": [{"method": "voting"}],
        },
        "benchmark",
    )
    here, there = folder / f"{clients}-{nodes}-here", folder / f"{clients}-{nodes}"
    alone = Clock()
    run_experiment(asked, here, "benchmark", alone)
    spread = Clock()
    local_trial.run_trial(asked, there, "benchmark", spread)
    assert payload(here) == payload(there)
    frames, around = overhead(there)
    return {
        "seconds": round(spread.median(), 2),
        "one machine": round(alone.median(), 3),
        "set-up": round(spread.ends[0] - spread.began, 1),
        "set-up of one machine": round(alone.ends[0] - alone.began, 1),
        "bytes of frames": frames,
        "bytes around them": around,
    }


def of_a_client(model: str, rounds: int, folder: Path) -> float:
    """Return the median seconds of a client's work in a round."""
    asked: Experiment = parse(
        {
            "rounds": rounds,
            "task": {
                "name": "digits",
                "clients": 3,
                "partition": "iid",
                "image_size": [28, 28],
                "limit": 1_200,
            },
            "models": {"clients": [model], "server": model},
            "train": {"epochs": 1, "batch_size": 32},
            "evaluate": {"every": rounds},
            "runtime": {"kind": "serial"},
            "arms": [{"method": "fedavg"}],
        },
        "benchmark",
    )
    run_experiment(asked, folder / model, "benchmark", Clock())
    records = RunFolder(folder / model).records("fedavg")[WARM:]
    return statistics.median(seconds for record in records for seconds in record.work)


def payload(folder: Path) -> list[Any]:
    records = RunFolder(folder).records("voting")
    return [[(e.client, e.direction, e.payload) for e in record.traffic] for record in records]


def overhead(folder: Path) -> tuple[int, int]:
    """Bytes of frames, and of what Flower serialises around them, in the last round."""
    last = RunFolder(folder).records("voting")[-1]
    return sum(e.bytes for e in last.traffic), last.carried["up"] + last.carried["down"]


if __name__ == "__main__":
    main()
