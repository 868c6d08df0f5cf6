"""Does a run that is killed again and again end in the same bits as one that is not?

    python benchmarks/kills.py [--kills 300] [--seed 0] [--every 1]

A small run of two arms is played once to its end. Then it is begun anew, killed by SIGKILL at a random moment
of playing, resumed, killed, and so on, each time with all its worker processes; when it has ended it is
compared with the first and the next begins, until there were enough kills. Compared are all events but how
long they took, results and the bytes of all models. Prints how far the runs were, and ends with status 1 at
the first that differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fedistill.experiment.run_folder import RunFolder

ROUNDS = 4
EXPERIMENT = f"""
rounds = {ROUNDS}
models = {{ clients = ["mlp-s"], server = "mlp-s" }}
train = {{ batch_size = 16, optimizer = {{ lr = 0.05, momentum = 0.9 }} }}
sampling = {{ fraction = 0.5, dropout = 0.2 }}
checkpoint = {{ every = EVERY }}
runtime = {{ kind = "processes", workers = 2 }}
task = {{ name = "digits", clients = 4, limit = 80, public = 40 }}
arms = [{{ method = "voting" }}, {{ method = "fedavg", codec = "qsgd" }}]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--every", type=int, default=1, help="checkpoint.every")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs, places = play(Path(folder), arguments.kills, arguments.every, random.Random(arguments.seed))
    print(f"{arguments.kills} kills in {runs} runs, each of which ended in the bits of the run without any")
    for place, count in sorted(places.items()):
        print(f"  {count:4}  {place}")


def play(folder: Path, kills: int, every: int, random: random.Random) -> tuple[int, Counter[str]]:
    """Return how many runs there were, and how often a kill found a run with so many saved rounds."""
    file = folder / "experiment.toml"
    file.write_text(EXPERIMENT.replace("EVERY", str(every)))
    begin = ["compare", str(file), "--out"]
    whole = folder / "whole"
    process = start(whole, *begin, str(whole))
    playing = time.time()
    end(process)
    longest, expected = (whole / "events.jsonl").stat().st_mtime - playing, outcome(whole)
    runs, places = 0, Counter[str]()
    while sum(places.values()) < kills:
        path, ended, played = folder / f"run-{runs}", False, False
        while not ended:
            begun = (path / "experiment.toml").exists()
            before = saved_rounds(path) if begun else [0, 0]
            process = start(path, *(["resume"] if begun else begin), str(path))
            # Of a run that has played all its rounds, the rest is killed once.
            moment = None if played or sum(places.values()) == kills else random.uniform(0, longest)
            ended = end(process, moment)
            if not ended:
                places[state_of(path)] += 1
                played = has_played(path)
                # Machines, and other work on them, make runs longer and shorter, and so do starts of workers.
                longest *= 0.9 if played else 1.15 if saved_rounds(path) == before else 1.0
        runs += 1
        print(f"{sum(places.values())} of {kills} kills, in {runs} runs", file=sys.stderr, flush=True)
        if outcome(path) != expected:
            sys.exit(f"run {runs}, after {sum(places.values())} kills in all, differs from the one without")
        shutil.rmtree(path)
    return runs, places


def start(path: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start fedistill as a group of its own; return once it plays in the folder, or has ended."""
    before = size(path)
    process = subprocess.Popen(
        [sys.executable, "-c", "from fedistill.cli.main import main; main()", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while process.poll() is None and size(path) == before:
        time.sleep(0.01)
    return process


def size(path: Path) -> int:
    events = path / "events.jsonl"
    return events.stat().st_size if events.exists() else 0


def end(process: "subprocess.Popen[bytes]", moment: float | None = None) -> bool:
    """Wait for the end, or kill the group after so many seconds; return whether it has ended itself."""
    try:
        _, said = process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        sys.exit(f"a run has failed:\n{said.decode(errors='replace')}")
    return True


def saved_rounds(path: Path) -> list[int]:
    folder = RunFolder(path)
    return [folder.last_round(arm) for arm in ("voting", "fedavg")]


def state_of(path: Path) -> str:
    """Return how far a run had come when it was killed."""
    voting, fedavg = saved_rounds(path)
    return f"after {voting} rounds of voting and {fedavg} of fedavg"


def has_played(path: Path) -> bool:
    return saved_rounds(path) == [ROUNDS, ROUNDS]


def outcome(path: Path) -> Any:
    """Return all that a run leaves and that time has no part in."""
    events = [event for event in RunFolder(path).events() if event["event"] == "round"]
    results = json.loads((path / "results.json").read_text())
    for timed in [*events, *(played for arm in results["arms"] for played in arm["rounds"])]:
        for key in ("seconds", "server_seconds", "work"):
            timed.pop(key, None)
    files = path.rglob("models/**/*.safetensors")
    models = {str(file.relative_to(path)): file.read_bytes() for file in files}
    return sorted(events, key=lambda event: (event["arm"], event["round"])), results["arms"], models


if __name__ == "__main__":
    main()
