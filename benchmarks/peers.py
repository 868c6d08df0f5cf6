"""Rounds of other libraries beside ours, all against a loop without a framework over the same images.

    FEDISTILL_DATA=FOLDER python benchmarks/peers.py --environments FOLDER [--only W4] [--sides pfl fluke]

W4 and W5 are those of benchmarks/small_clients.py: FedAvg with many small clients and `mlp-s`. W1 is that of
benchmarks/speed.py: 20 clients with 1,000 images each and a small convolutional network.

Each side is a process with one thread. benchmarks/peer_sides has its script and, for other libraries, the
versions of all that is installed in an environment of its own, which is made in FOLDER if it is not there. A
side has the images as tensors in memory, the same clients, network and number of participants in a round, SGD
with momentum that starts anew for each client and round, and one epoch of batches of 32. Nothing is evaluated
in a round; after the last one, each side says how good its model is on the test images: none is fast by
training nothing.

Sides take turns, a round each; the first round warms up. Flower's simulation works between rounds too, so it
plays after the others. `processor` is the processor time of a side and all its processes. `peak_bytes` leaves
out files that are mapped, such as libraries: sides that share them would count for less.
"""

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import small_clients
import speed
import torch
from kept import keep

from fedistill import parse
from fedistill.experiment.runner import prepare

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "peers.json"
SCRIPTS = HERE / "peer_sides"
PEERS = {"pfl": "pfl", "fluke": "fluke-fl", "flower": "flwr"}
"""Sides with an environment of their own, and the package whose version is kept."""
SIDES = {
    "loop": "plain.py",
    "exact": "ours.py",
    "fast": "ours.py",
    "pfl": "with_pfl.py",
    "fluke": "with_fluke.py",
    "flower": "with_flower.py",
}
ALONE = {"flower"}
WORKLOADS: dict[str, dict[str, Any]] = {
    "W4": {**small_clients.WORKLOADS["W4"], "network": "mlp-s"},
    "W5": {**small_clients.WORKLOADS["W5"], "network": "mlp-s"},
    "W1": {**speed.WORKLOADS["W1"], "fraction": 1.0, "network": "cnn-s"},
}
SEED = 0
PATIENCE = 600.0
"""Seconds that a side may take to get ready, or for a round."""


class SideError(Exception):
    """A side cannot do a workload."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", choices=WORKLOADS, help="one workload")
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=[*SIDES])
    parser.add_argument("--repeats", type=int, default=3, help="counted rounds of each side")
    arguments = parser.parse_args()
    sides = [side for side in SIDES if side in {"loop", *arguments.sides}]
    pythons = {side: python_for(side, arguments.environments.resolve()) for side in sides}
    for name in [arguments.only] if arguments.only else [*WORKLOADS]:
        command = f"python benchmarks/peers.py --environments FOLDER --only {name}"
        if sides != [*SIDES]:
            command += f" --sides {' '.join(sides)}"
        command += f" --repeats {arguments.repeats}"
        for side, row in measure(name, pythons, arguments.repeats).items():
            row = {"command": command, "date": time.strftime("%Y-%m-%d"), **row}
            print(f"{name} {side}: {json.dumps(row)}", flush=True)
            keep(RESULTS, name, side, row)


def python_for(side: str, folder: Path) -> Path:
    """Return the interpreter for a side; the first time, make its environment."""
    if side not in PEERS:
        return Path(sys.executable)
    place = folder / side
    python = place / "bin" / "python"
    ready = place / "ready"
    if not ready.exists():
        print(f"making {place}", flush=True)
        # With -I, pip does not see what PYTHONPATH names, and so does not ask for what that needs.
        install = [str(python), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        subprocess.run([*install, "torch", "-c", str(HERE.parent / "constraints.txt")], check=True)
        subprocess.run([*install, "--no-deps", "-r", str(SCRIPTS / f"{side}.txt")], check=True)
        ready.touch()
    return python


def measure(name: str, pythons: dict[str, Path], repeats: int) -> dict[str, dict[str, Any]]:
    """Return what each side took for a workload, or why it cannot do it."""
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.pt"
        torch.save(images_of(name), data)
        together = [side for side in pythons if side not in ALONE]
        for group in (together, *([side] for side in pythons if side in ALONE)):
            rows |= play(group, name, pythons, data, repeats)
    # The loop is measured whenever anything is: what it took is what others are divided by.
    for row in rows.values():
        if "medians" in row:
            row["ratios"] = {of: row["medians"][of] / rows["loop"]["medians"][of] for of in row["medians"]}
    return rows


def play(
    group: list[str], name: str, pythons: dict[str, Path], data: Path, repeats: int
) -> dict[str, dict[str, Any]]:
    """Let sides take turns."""
    rows: dict[str, dict[str, Any]] = {}
    sides: dict[str, Side] = {}
    for side in group:
        try:
            sides[side] = Side(side, pythons[side], data, settings_of(name, side, repeats + 1))
        except SideError as error:
            rows[side] = {"cannot": str(error)}
    for _ in range(repeats + 1):
        for side, process in [*sides.items()]:
            try:
                process.round()
            except SideError as error:
                rows[side] = {"cannot": str(error)}
                process.kill()
                del sides[side]
    for side, process in sides.items():
        rows[side] = process.close()
    return rows


class Side:
    """A side in its process."""

    def __init__(self, side: str, python: Path, data: Path, settings: dict[str, Any]) -> None:
        if "cannot" in settings:
            raise SideError(settings["cannot"])
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - read when the side has failed
        paths = [str(HERE), *([str(HERE.parent / "src")] if side not in PEERS else [])]
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [str(python), str(SCRIPTS / SIDES[side]), str(data), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "OMP_NUM_THREADS": "1",
                # No library reports to its authors from here.
                "FLWR_TELEMETRY_ENABLED": "0",
                "RAY_USAGE_STATS_ENABLED": "0",
                # By default, Ray gives way to all other work of the machine.
                "RAY_worker_niceness": "0",
            },
        )
        self._peak = 0.0
        self._rounds: list[dict[str, float]] = []
        try:
            ready = self._answer()
        except SideError:
            self.kill()
            raise
        if side in PEERS:
            ready["versions"][PEERS[side]] = version_in(python, PEERS[side])
        took = {"seconds": time.perf_counter() - began, "processor": ready["prepared"]}
        self._about = {"versions": ready["versions"], "prepare": took}

    def round(self) -> None:
        assert self._process.stdin is not None
        try:
            print("round", file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise SideError(self._last_words()) from None
        self._rounds.append(self._answer())

    def close(self) -> dict[str, Any]:
        """Return the row of a side that has played all its rounds."""
        scores = self._answer()
        peak = int(self._peak)
        self.kill()
        lists = {of: [round(each[of], 4) for each in self._rounds] for of in ("seconds", "processor")}
        medians = {of: statistics.median(values[1:]) for of, values in lists.items()}
        return {**self._about, **lists, "medians": medians, "peak_bytes": peak, **scores}

    def kill(self) -> None:
        """End the side; what it has started ends with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        end = time.monotonic() + PATIENCE
        while not select.select([self._process.stdout], [], [], 0.2)[0]:
            whole = speed.tree(self._process.pid)
            self._peak = max(self._peak, sum(speed.held(pid, ("Pss_Anon", "Pss_Shmem")) for pid in whole))
            if time.monotonic() > end:
                raise SideError(f"no answer within {PATIENCE:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise SideError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"


def version_in(python: Path, package: str) -> str:
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def settings_of(name: str, side: str, rounds: int) -> dict[str, Any]:
    """What a side is told; ``cannot`` says why there is nothing to measure."""
    workload = WORKLOADS[name]
    fast = side == "fast"
    if fast and workload["network"] != "mlp-s":
        return {"cannot": "runtime.fast changes nothing: it does not stack convolutional networks"}
    return {
        "clients": workload["clients"],
        "participants": round(workload["clients"] * workload["fraction"]),
        "rounds": rounds,
        "network": workload["network"],
        "batch": small_clients.BATCH,
        "lr": small_clients.LR,
        "momentum": small_clients.MOMENTUM,
        "seed": SEED,
        **({"experiment": experiment_of(name, rounds, fast)} if side in ("exact", "fast") else {}),
    }


def experiment_of(name: str, rounds: int, fast: bool) -> dict[str, Any]:
    workload = WORKLOADS[name]
    experiment = small_clients.experiment_of(workload, rounds, fast)
    return {**experiment, "models": {"clients": [workload["network"]], "server": workload["network"]}}


def images_of(name: str) -> dict[str, torch.Tensor]:
    """Return the pixels and labels of all clients, one after the other, and those to test on."""
    task, _ = prepare(parse(experiment_of(name, 1, fast=False), name))
    return {
        "samples": torch.cat([data.samples for data in task.clients]),
        "labels": torch.cat([data.labels for data in task.clients]),
        "sizes": torch.tensor([len(data.labels) for data in task.clients]),
        "test_samples": task.test.samples.clone(),
        "test_labels": task.test.labels.clone(),
    }


if __name__ == "__main__":
    main()
