"""What a round writes to disk and how much memory it takes, for thousands of clients.

    FEDISTILL_DATA=FOLDER python benchmarks/storage.py [--clients 1000 10000] [--methods dsfl voting]

Fashion-MNIST at 8 x 8 pixels, six private images a client and 100 public ones, `mlp-s` (4,810 weights), one
step on either, every client in every round, in one process. Of each round after the first: bytes that were
handed to the system to write, files synced, processor seconds of the round and of saving it; and the most
memory of all rounds (proportional set size). At the end the run is read from its folder, and compared bit for
bit with the one in memory.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from kept import keep

from fedistill import parse
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.testing.runs import bits, require_same

RESULTS = Path(__file__).parent / "results" / "storage.json"
SAMPLES, PUBLIC = 6, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--methods", nargs="+", default=["dsfl", "voting"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    pairs = [(method, clients) for method in arguments.methods for clients in arguments.clients]
    if len(pairs) == 1:
        ((method, clients),) = pairs
        found = measure(method, clients, arguments.rounds)
        print(f"{method}, {clients:,} clients: {found}", flush=True)
        keep(RESULTS, method, str(clients), found)
        return
    # What one has freed would count as memory of the next.
    for method, clients in pairs:
        given = ["--methods", method, "--clients", str(clients), "--rounds", str(arguments.rounds)]
        subprocess.run([sys.executable, __file__, *given], check=True)


def measure(method: str, clients: int, rounds: int) -> dict[str, Any]:
    experiment = parse(experiment_of(method, clients, rounds + 1), method)
    task, (arm,) = prepare(experiment)
    path = Path(tempfile.mkdtemp()) / "run"
    counted = Counted()
    try:
        folder = RunFolder.create(path, experiment, "")
        run = folder.restore(arm)
        played: list[dict[str, float]] = []
        with SerialExecutor(experiment, task) as executor:
            for _ in range(rounds):
                before = written(), counted.syncs, time.process_time()
                play_round(run, arm, executor)
                between = time.process_time()
                folder.add_round(arm, run)
                folder.save(arm, run)
                after = time.process_time()
                played.append(
                    {
                        "bytes": written() - before[0],
                        "syncs": counted.syncs - before[1],
                        "round_seconds": between - before[2],
                        "save_seconds": after - between,
                    }
                )
        # Only now are all states in memory at once, and twice.
        peak = counted.close()
        models = 4 * arm.federation.clients[0].parameters * clients
        again = RunFolder(path).restore(arm)
        require_same(again, bits(run), "a run is read as it was written")
        on_disk = sum(file.stat().st_size for file in path.rglob("checkpoint/*/*"))
    finally:
        shutil.rmtree(path.parent)
    return {
        "command": f"python benchmarks/storage.py --clients {clients} --methods {method} --rounds {rounds}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "models": models,
        "rounds": played,
        "on_disk": on_disk,
        "peak": peak,
    }


def experiment_of(method: str, clients: int, rounds: int) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "task": {
            "name": "fashion-mnist",
            "clients": clients,
            "limit": min(SAMPLES * clients, 60_000 - PUBLIC),
            "public": PUBLIC,
            "image_size": [8, 8],
        },
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"epochs": 1, "batch_size": 128, "optimizer": {"lr": 0.1}},
        "evaluate": {"every": rounds},
        "runtime": {"kind": "serial"},
        "arms": [{"method": method}],
    }


class Counted:
    """Counts synced files, and watches the memory of this process."""

    def __init__(self) -> None:
        self.syncs, self._peak = 0, 0
        self._sync, self._over = os.fsync, threading.Event()
        os.fsync = self._fsync
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def close(self) -> int:
        """Stop; return the largest proportional set size that was seen, in bytes."""
        os.fsync = self._sync
        self._over.set()
        self._watcher.join()
        return self._peak

    def _fsync(self, file: Any) -> None:
        self.syncs += 1
        self._sync(file)

    def _watch(self) -> None:
        while not self._over.wait(1):
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
            pss = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            self._peak = max(self._peak, 1024 * pss)


def written() -> int:
    """Return the bytes that this process has handed to the system to write."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


if __name__ == "__main__":
    main()
