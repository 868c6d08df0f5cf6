"""Seconds a round on Flower, beside those of one process: what Flower's own start of a ClientApp costs.

    python benchmarks/flower.py [--nodes 3] [--rounds 6]

examples/flower-digits: SuperLink and SuperNodes on this machine with TLS and known keys, and the same file
in one process. A round is the time from one to the next, medians without the first two, in which nodes deal
out their data. `polls`: how often Flower's SuperExec looks for work, once a second by default. `start` is
what a process needs to import what a client needs, without Flower. Frames are equal, and checked to be.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedistill.config.toml import load
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import run_experiment
from fedistill.flower import local_trial

RESULTS = Path(__file__).parent / "results" / "flower.json"
EXAMPLE = Path(__file__).parents[1] / "examples" / "flower-digits" / "experiment.toml"
WARM = 2
POLLS = ("1.0", "0.5")


class Clock:
    """Notes when rounds end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def findings(self, findings: Sequence[Any]) -> None: ...

    def arm(self, name: str, rounds: int, done: int) -> None: ...

    def round(self, name: str, record: Any) -> None:
        self.ends.append(time.perf_counter())

    def failed(self, name: str, error: str) -> None:
        raise SystemExit(f"arm {name} failed: {error}")

    def median(self) -> float:
        spans = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(spans[WARM - 1 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    sets = [f"task.clients={arguments.nodes}", f"rounds={arguments.rounds}", "runtime.kind=serial"]
    experiment = load(EXAMPLE, sets)
    with tempfile.TemporaryDirectory() as folder:
        here = Clock()
        run_experiment(experiment, Path(folder) / "here", "benchmark", here)
        seconds = {"in_process": round(here.median(), 3)}
        same = True
        for poll in POLLS:
            there, out = Clock(), Path(folder) / poll
            os.environ["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = poll
            local_trial.run_trial(experiment, out, "benchmark", there)
            seconds[f"flower, polls each {poll} s"] = round(there.median(), 2)
            same = same and payload(Path(folder) / "here") == payload(out)
            transport = overhead(out)
    found = {
        "seconds_a_round": seconds,
        "start": round(start(), 2),
        "bytes_a_round": {"frames": transport[0], "around_them": transport[1]},
        "same_payload": same,
        "nodes": arguments.nodes,
        "rounds": arguments.rounds,
        "command": f"python benchmarks/flower.py --nodes {arguments.nodes} --rounds {arguments.rounds}",
        "versions": {name: version(name) for name in ("fedistill", "flwr", "torch")},
        "python": platform.python_version(),
    }
    print(json.dumps(found, indent=1))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def payload(folder: Path) -> list[Any]:
    records = RunFolder(folder).records("voting")
    return [[(e.client, e.direction, e.payload) for e in record.traffic] for record in records]


def overhead(folder: Path) -> tuple[int, int]:
    """Bytes of frames, and of what Flower serialises around them, in the last round."""
    last = RunFolder(folder).records("voting")[-1]
    return sum(e.bytes for e in last.traffic), last.carried["up"] + last.carried["down"]


def start() -> float:
    """Median seconds of a process that imports what a client's work needs."""
    spans = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import fedistill.federation.client"], check=True)
        spans.append(time.perf_counter() - began)
    return statistics.median(spans)


if __name__ == "__main__":
    main()
