"""How long commands take until they have answered, as ratios to ``import torch`` in the same run.

    python benchmarks/startup.py [--repeats 7]

Each command is a process of its own; they take turns, and a figure is the median of its times on the clock.
The round is one of DS-FL with two clients on digits, with its report, in one process and with the default
settings.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from kept import keep

RESULTS = Path(__file__).parent / "results" / "startup.json"
EXPERIMENT = """
rounds = 1
task = { name = "digits", clients = 2, limit = 200, public = 100 }
models = { clients = ["mlp-s"], server = "mlp-s" }
arms = [{ method = "dsfl" }]
"""
FEDISTILL = [str(Path(sys.executable).with_name("fedistill"))]
TORCH = "import torch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="times that each command is counted")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), repeats)
    medians = {name: statistics.median(took) for name, took in seconds.items()}
    for name, median in medians.items():
        row = {
            "command": f"python benchmarks/startup.py --repeats {repeats}",
            "seconds": [round(value, 3) for value in seconds[name]],
            "median": round(median, 3),
            "of import torch": round(median / medians[TORCH], 3),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "torch": version("torch"),
            "date": time.strftime("%Y-%m-%d"),
        }
        print(f"{name}: {median:.2f} s, {row['of import torch']:.2f} of {TORCH}")
        keep(RESULTS, "startup", name, row)


def measure(folder: Path, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each command; the first turn, which warms the disk up, is left out."""
    file = folder / "experiment.toml"
    file.write_text(EXPERIMENT)
    seconds: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        compare = [*FEDISTILL, "compare", str(file), "--out"]
        commands = {
            TORCH: [sys.executable, "-c", TORCH],
            "fedistill --help": [*FEDISTILL, "--help"],
            "fedistill --version": [*FEDISTILL, "--version"],
            "fedistill methods": [*FEDISTILL, "methods"],
            "one round, serial": [*compare, str(folder / f"s{turn}"), "--set", "runtime.kind='serial'"],
            "one round": [*compare, str(folder / f"p{turn}")],
        }
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if turn:
                seconds.setdefault(name, []).append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
